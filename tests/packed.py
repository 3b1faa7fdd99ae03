"""The distributions of this checkout, for the tests of what pip installs."""

import functools
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# tools that work only in a checkout
CHECKOUT_ONLY = {
    *('compare.py', 'make_docs.py', 'make_pictures.py', 'make_site.sh', 'quickstart.py'),
    *('quickstart.sh', 'run_tests.sh', 'setup_env.sh', 'test_matrix.sh'),
}
BUILD = """
import sys
from setuptools import build_meta
print(*(getattr(build_meta, f'build_{kind}')('dist') for kind in sys.argv[1:]), sep='\\n')
"""


@functools.cache
def build():
    """Build the sdist, from it the wheel, and an editable wheel. Return their paths by kind."""
    build.folder = tempfile.TemporaryDirectory()  # removed when Python exits
    folder = Path(build.folder.name)
    # a copy, because setuptools builds in the folder and packs what an earlier build left there
    source = folder / 'source'
    ignored = shutil.ignore_patterns('.*', 'build', 'data', 'docs', 'work_dirs', '__pycache__')
    shutil.copytree(ROOT, source, ignore=ignored)
    sdist, editable = _build(source, 'sdist', 'editable')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter='data')
    (wheel,) = _build(folder / sdist.name.removesuffix('.tar.gz'), 'wheel')
    return {'sdist': sdist, 'editable': editable, 'wheel': wheel}


def install(folder):
    """Install the wheel in a folder for PYTHONPATH, as pip does with pure Python, in less time."""
    with zipfile.ZipFile(build()['wheel']) as archive:
        archive.extractall(folder)
    return folder


def _build(source, *kinds):
    built = subprocess.run(
        [sys.executable, '-c', BUILD, *kinds],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    return [source / 'dist' / name for name in built.stdout.split('\n')[-len(kinds) - 1 : -1]]
