"""Which cases of a test matrix run by default, and which ones with the slow tests only."""

import pytest


def only_quick(values, quick):
    """Return the parameters of a test, with all but the quick ones marked as slow."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
