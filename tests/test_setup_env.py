"""tools/setup_env.sh: its decisions, messages and exit codes. These tests install nothing.

Each run of tools/run_tests.sh starts with the real script. The nightly test installs both stacks.
"""

import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[1]
BASH = shutil.which('bash')
STACKS = ('openmmlab', 'onedl')
VERSION = '.'.join(map(str, sys.version_info[:3]))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_python(path, before='pass', making_venv='true'):
    """Write a stand-in that runs this Python after a statement, and a command for ``-m venv``."""
    code = f'{before}; sys._base_executable = "{path}"; exec(sys.argv[-1])'
    run = f"exec {sys.executable} -c 'import sys, importlib.util as util; {code}'"
    venv = f'[[ $* != *--without-pip* ]] || {{ {making_venv}; exit 1; }}'
    return write(path, f'#!{BASH}\n{venv}\n{run} "$@"\n')


@pytest.fixture
def checkout(tmp_path):
    """A copy of all files that determine the environment."""
    metadata = ('setup.py', 'pyproject.toml', 'mmgcvit/version.py', 'mmgcvit/mmcv_ops/site')
    for name in ('requirements', 'tools/setup_env.sh', *metadata):
        copy = tmp_path / 'a 100% checkout' / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (REPO / name).is_dir() else shutil.copy)(REPO / name, copy)
    return tmp_path / 'a 100% checkout'


@pytest.fixture
def set_up(tmp_path, checkout):
    """Run the script of that checkout for the environment "env", with a stand-in for Python."""
    fake_python(tmp_path / 'python')
    default = {'MMGCVIT_VENV': f'{tmp_path}/env', 'PYTHON': f'{tmp_path}/python'}

    def call(*words, wait=True, **variables):
        process = subprocess.Popen(
            [BASH, checkout / 'tools/setup_env.sh', *words],
            env={'PATH': os.environ['PATH'], **default, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process.text = process.communicate(timeout=60)[0] if wait else ''
        return process

    return call


@pytest.fixture
def made(tmp_path, checkout, set_up):
    """An environment that looks finished. Its Python only records its arguments."""
    venv = tmp_path / 'env'
    record = {'dir_info': {'editable': True}, 'url': checkout.as_uri()}
    release = re.search("'(.*)'", (checkout / 'mmgcvit/version.py').read_text())[1]
    write(
        venv / f'lib/python3/site-packages/mmgcvit-{release}.dist-info/direct_url.json',
        json.dumps(record),
    )
    write(venv / 'bin/python', f'#!{BASH}\necho "$*" >>"{tmp_path}/calls"')
    write(venv / 'pyvenv.cfg', f'home = /\nversion = {VERSION}\n')
    write(venv / '.mmgcvit/env.json', '"stack": "openmmlab"')
    write(venv / '.mmgcvit/stamp', f'{set_up("--print-hash").text.strip()} {venv}')
    return venv


def refused(process, code=1):
    """Check that a setup failed with one message and one remedy, and return its output."""
    assert process.returncode == code, process.text
    assert process.text.count('FAILED: ') == process.text.count('remedy: ') == 1, process.text
    assert 'Traceback' not in process.text
    return process.text


@pytest.fixture
def commands(tmp_path):
    """A folder for PATH with the commands of a minimal system."""
    (tmp_path / 'commands').mkdir()
    for name in ['cat', 'cut', 'dirname', 'grep', 'ls', 'realpath', 'sed', 'sha256sum', 'uname']:
        (tmp_path / 'commands' / name).symlink_to(shutil.which(name))
    return tmp_path / 'commands'


@pytest.mark.parametrize(
    'before, message',
    [
        ('sys.version_info = (3, 14, 0)', 'python3 is Python 3.14.0\n.*conda create -n py312'),
        ('sys.version_info = (3, 9, 18)', 'python3 is Python 3.9.18\n.*install python3-venv'),
        ('util.find_spec = {"venv": 1}.get', r'no venv module\n.*install python3.\d+-venv'),
        ('sys.exit("as the shims of pyenv")', 'python3 does not run\n.*PYTHON=/path/to/python'),
        (None, 'python3 not found\n.*install python3-venv'),
    ],
)
def test_a_python_that_cannot_be_used(commands, set_up, before, message):
    if before:
        fake_python(commands / 'python3', before)
    assert re.search(message, refused(set_up(PATH=str(commands), PYTHON='')))


def test_which_python_is_taken(commands, set_up):
    for name, before in {
        'python3.13': 'sys.exit(1)',
        'python3.12': 'sys.version_info = (3, 12, 1)',
        'python3.11': 'sys.version_info = (3, 11, 1)',
    }.items():
        fake_python(commands / name, before)
    newest, old, new = (
        set_up('--print-hash', PATH=str(commands), PYTHON=name).text
        for name in ('', 'python3.11', 'python3.12')
    )
    assert newest == new != old and re.fullmatch(r'[0-9a-f]{16}\n', new)
    assert ': no/python not found\n' in refused(set_up(PATH=str(commands), PYTHON='no/python'))


@pytest.mark.parametrize('words', [['--stack', 'mmx'], ['--stack'], ['--stak=onedl']])
def test_a_wrong_option(set_up, words):
    assert f'unknown {"stack" if words[0] == "--stack" else "option"}' in refused(set_up(*words), 2)


def test_nothing_to_do_takes_no_time_and_no_python(tmp_path, set_up, made, commands):
    began = time.monotonic()
    process = set_up(PATH=str(commands), PYTHON='')
    assert time.monotonic() - began < 1
    assert process.returncode == 0, process.text
    assert f'{made} is up to date: the openmmlab stack on Python {VERSION}\n' in process.text
    assert sorted(path.name for path in (made / '.mmgcvit').iterdir()) == ['env.json', 'stamp']
    assert not (tmp_path / 'calls').exists()


@pytest.mark.parametrize('other', ['checkout', 'version'])
def test_another_checkout_of_the_same_content_is_pointed_at(
    tmp_path, set_up, made, checkout, other
):
    record = next(made.glob('lib/*/*/*/direct_url.json'))
    if other == 'checkout':
        record.write_text(record.read_text().replace('a%20100%25', 'another'))
    else:
        (checkout / 'mmgcvit/version.py').write_text("__version__ = '99.0'\n")
    process = set_up()
    assert '[1/1] pointing mmgcvit' in process.text and 'is ready after 0:' in process.text
    install = f'-I -m pip install --no-deps --no-build-isolation --editable {checkout}\n'
    assert (tmp_path / 'calls').read_text() == install


def test_a_folder_that_is_not_ours(tmp_path, set_up):
    files = [write(tmp_path / 'env' / name, '') for name in ('notes.txt', 'pyvenv.cfg')]
    assert 'was not created by this script' in refused(set_up())
    assert sorted((tmp_path / 'env').iterdir()) == files
    text = refused(set_up(MMGCVIT_VENV=f'{files[0]}/env'))
    assert f'cannot write to {files[0]}/env: Not a directory' in text


def test_the_other_stack_is_refused(set_up, made):
    (made / 'bin/of the user').touch()
    text = refused(set_up('--stack', 'onedl'))
    assert f'{made} has the openmmlab stack' in text and 'MMGCVIT_VENV=' in text
    assert (made / 'bin/of the user').exists()
    assert 'is up to date' in set_up('--stack', 'openmmlab').text
    (made / '.mmgcvit/stamp').unlink()  # an unfinished environment may be replaced
    assert '[1/4]' in refused(set_up('--stack', 'onedl'))


FILES = ['requirements/openmmlab.txt', 'requirements/dev.txt', 'tools/setup_env.sh', 'setup.py']
FILES += ['mmgcvit/mmcv_ops/site/_mmgcvit_mmcv_ops.pth']


@pytest.mark.parametrize(
    'change', [*FILES, 'dependency', 'unfinished', 'moved', 'broken', 'python', 'version 0.1']
)
def test_what_makes_it_start_over(tmp_path, set_up, made, checkout, change):
    (checkout / 'requirements/onedl.txt').write_text('')
    assert 'is up to date' in set_up().text
    before = 'pass'
    if change in FILES:
        with (checkout / change).open('a') as file:
            file.write('# changed\n')
    elif change == 'dependency':
        file = checkout / 'pyproject.toml'
        file.write_text(file.read_text().replace('"torch>=2.1"', '"torch>=2.2"'))
    elif change == 'unfinished':
        (made / '.mmgcvit/stamp').unlink()
    elif change == 'moved':
        made = made.rename(tmp_path / 'moved')
    elif change == 'broken':
        (made / 'bin/python').unlink()
    elif change == 'python':
        before = 'sys.version_info = (3, 12, 99)'
    else:
        write(made / '.mmgcvit/env.json', '{\n "stack": "onedl",\n "path": "/openmmlab"\n}')
    fake_python(tmp_path / 'python', before, 'echo "it breaks here" >&2')
    text = refused(set_up(MMGCVIT_VENV=str(made)))
    assert '[1/4] Python 3' in text and '| it breaks here' in text
    assert [path.name for path in made.iterdir()] == ['.mmgcvit']
    left = {path.name: path.read_text() for path in (made / '.mmgcvit').iterdir()}
    assert sorted(left) == ['env.json', 'lock', 'setup.log'], 'neither stamp nor tmp'
    stack = 'onedl' if change == 'version 0.1' else 'openmmlab'
    assert left['env.json'] == f'"stack": "{stack}"\n'
    assert 'it breaks here' in left['setup.log']


def test_a_second_set_up_waits(tmp_path, set_up, made):
    stamp = (made / '.mmgcvit/stamp').rename(tmp_path / 'stamp')
    with (made / '.mmgcvit/lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = set_up(wait=False)
        assert process.stdout.readline() == f'waiting for another setup of {made}\n'
        stamp.rename(made / '.mmgcvit/stamp')
    assert 'is up to date' in process.communicate(timeout=10)[0]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_ends_what_runs(tmp_path, set_up, number):
    talks = 'while sleep 0.1; do echo $$ >"$0.pid"; echo working || exit; done'
    pid = fake_python(tmp_path / 'python', making_venv=talks).with_name('python.pid')
    process = set_up(wait=False)
    while not (pid.exists() and pid.read_text()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    process.text = process.communicate(timeout=10)[0]
    if number == signal.SIGTERM:
        assert 'step 1/4: interrupted' in refused(process, 130)
    end = time.monotonic() + 5
    while Path('/proc', pid.read_text().strip()).exists():
        assert time.monotonic() < end, 'the command goes on'
    assert not (tmp_path / 'env/.mmgcvit/stamp').exists()


# messages of pip 23 and 26
RETRYING = (
    'WARNING: Retrying (Retry(total={}, connect=None)) after connection broken by '
    "'NewConnectionError('<pip._vendor.urllib3 object at 0x7fee{}>: Failed to establish a new "
    "connection: [Errno -3] Temporary failure in name resolution')': /simple/pip/"
)
NOT_FOUND = 'ERROR: No matching distribution found for torch==1'


@pytest.mark.parametrize(
    'lines, what, remedy',
    [
        (['OSError: [Errno 28] No space left on device'], 'disk is full', 'PIP_CACHE_DIR'),
        (['Error: [Errno 30] Read-only file system: /x'], 'be written to', 'MMGCVIT_VENV='),
        ([RETRYING.format(1, 'a'), RETRYING.format(0, 'b'), NOT_FOUND], 'index', 'HTTPS_PROXY'),
        ([NOT_FOUND], 'no wheel for this Python', 'pip config list'),
        (
            ['1. cv2: libGL', 'error: problems found, see the numbered lines above'],
            'problems',
            'numbered lines',
        ),
        (['Collecting x', 'Segmentation fault'], 'failed with exit status 1', 'check the log'),
    ],
)
def test_the_remedy_follows_from_what_the_command_says(tmp_path, set_up, lines, what, remedy):
    says = write(tmp_path / 'says', '\n'.join(lines))
    fake_python(tmp_path / 'python', making_venv=f'cat {says}')
    text = refused(set_up())
    assert re.search(f'FAILED: step 1/4: .*{what}.*\n', text) and remedy in text.split('remedy:')[1]
    assert f'  | {lines[-1]}\n' in text and text.count('Retrying') == (len(lines) == 3)


def complaints(python):
    check = subprocess.run([python, '-I', '-m', 'pip', 'check'], capture_output=True, text=True)
    known = ('requires opencv-python, which is not installed.', 'No broken requirements found.')
    return [line for line in check.stdout.splitlines() if not line.endswith(known)]


@pytest.mark.nightly
@pytest.mark.parametrize('stack', STACKS)
def test_the_real_packages(tmp_path, stack):
    variables = {**os.environ, 'MMGCVIT_VENV': str(tmp_path / 'env'), 'PYTHON': sys.executable}
    for state in ('is ready after', 'is up to date'):
        script = [BASH, REPO / 'tools/setup_env.sh', '--stack', stack]
        process = subprocess.run(script, env=variables, capture_output=True, text=True)
        assert state in process.stdout, process.stdout + process.stderr
    assert complaints(tmp_path / 'env/bin/python') == []
    shutil.rmtree(tmp_path / 'env')  # pytest would keep the 6 GB


def pins(stack, python):
    """Map the names of a stack's packages for a version of Python to their pinned versions."""
    texts = [(REPO / f'requirements/{name}.txt').read_text() for name in (stack, 'dev')]
    lines = [line.split(' #')[0] for text in texts for line in text.splitlines()]
    needs = [Requirement(line) for line in lines if line and line[0] not in '#-']
    here = {'python_version': python}
    pairs = [(n.name, str(n.specifier)) for n in needs if not n.marker or n.marker.evaluate(here)]
    assert len(pairs) == len(dict(pairs)) and all(re.match(r'==[\d.]+$', pin) for _, pin in pairs)
    return {name: pin[2:] for name, pin in pairs}


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
@pytest.mark.parametrize('stack', STACKS)
def test_every_package_is_pinned_once(stack, python):
    versions = pins(stack, python)
    assert {'pip', 'torch', 'torchvision', 'opencv-python-headless'} <= set(versions)
    assert not {'opencv-python', 'mmcv'} & set(versions)
    # since 80.9, every command would start with a warning about pkg_resources; 82 removes it
    assert [int(number) for number in versions['setuptools'].split('.')] < [80, 9]


def test_this_environment_is_what_the_files_say():
    record = Path(sys.prefix, '.mmgcvit/env.json')
    if not record.exists():
        pytest.skip('not an environment of tools/setup_env.sh')
    wanted = pins(re.search('openmmlab|onedl', record.read_text())[0], VERSION.rpartition('.')[0])
    found = {name: importlib.metadata.version(name).split('+')[0] for name in wanted}
    assert found == wanted
    assert complaints(sys.executable) == []


def test_the_package_itself_requires_neither_stack():
    needs = [Requirement(need) for need in importlib.metadata.requires('mmgcvit')]
    assert {need.name for need in needs if not need.marker} == {'torch', 'numpy', 'filelock'}
    for stack in STACKS:
        assert sum(need.marker.evaluate({'extra': stack}) for need in needs if need.marker) >= 5


def test_ci_names_its_environment_by_the_hash_and_removes_old_ones(tmp_path, checkout):
    run = shutil.copy(REPO / '.ci/run', write(checkout / '.ci/run', ''))
    write(checkout / 'tools/setup_env.sh', 'echo abc123')
    write(checkout / 'tools/run_tests.sh', 'echo "venv $MMGCVIT_VENV, $*"')
    envs = tmp_path / 'cache/envs'
    for name, days in [('ci-old', 8), ('ci-recent', 6), ('ci-abc123', 30), ('mine', 30)]:
        (envs / name).mkdir(parents=True)
        os.utime(envs / name, (time.time() - days * 24 * 3600,) * 2)
    env = {**os.environ, 'MMGCVIT_CACHE': str(tmp_path / 'cache')}
    output = subprocess.check_output([run], cwd=tmp_path, env=env, text=True)
    assert f'venv {envs}/ci-abc123, --all' in output and f'removing {envs}/ci-old' in output
    assert sorted(path.name for path in envs.iterdir()) == ['ci-abc123', 'ci-recent', 'mine']
    assert os.access(REPO / '.ci/run', os.X_OK)
    shellcheck = shutil.which('shellcheck', path=Path(sys.executable).parent)
    assert not shellcheck or subprocess.run([shellcheck, run]).returncode == 0
