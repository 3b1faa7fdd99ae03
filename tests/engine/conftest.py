import shutil

import checked
import pytest


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """Data to check."""
    return checked.draw(tmp_path_factory.mktemp('check') / 'shapes')


@pytest.fixture
def shapes(drawn, tmp_path):
    """A copy of the data to spoil."""
    shutil.copytree(drawn, tmp_path / 'shapes')
    return tmp_path / 'shapes'
