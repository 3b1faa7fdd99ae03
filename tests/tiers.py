"""Which cases of a test matrix run by default, with the slow tests only, or not at all."""

import pytest

from mmgcvit.engine.fsdp import shards_on_cpu


def only_quick(values, quick):
    """Return the parameters of a test, with all but the quick ones marked as slow."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


# for trainings by FSDP in processes without a GPU
in_shards = pytest.mark.skipif(not shards_on_cpu(), reason='FSDP of this PyTorch needs a GPU')
