"""The scripts that make the environment: their errors, their hash, what they decide.

No network, no installation: commands that would install are never reached, or
are replaced by stand-ins in a copy of the scripts.
"""

import importlib
import importlib.metadata
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
BASH = shutil.which('bash')


def load(*names):
    """Modules of tools/_setup; tools/ is on the path for no longer than that takes."""
    sys.path.insert(0, str(REPO / 'tools'))
    try:
        return [importlib.import_module(f'_setup.{name}') for name in names]
    finally:
        sys.path.remove(str(REPO / 'tools'))


cli, cuda, environment, errors, machine, runner, wheel = load(
    'cli', 'cuda', 'environment', 'errors', 'machine', 'runner', 'wheel'
)


@pytest.fixture
def commands(tmp_path):
    """An otherwise empty PATH, with what a minimal system has."""
    folder = tmp_path / 'commands'
    folder.mkdir()
    for name in ('dirname', 'sed', 'uname', 'env', 'cat'):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!{BASH}\n{text}\n')
    path.chmod(0o755)
    return path


def fake_python(path, before):
    """An interpreter like this one in which some lines ran first."""
    run = 'sys.argv.pop(0); runpy.run_path(sys.argv[0], {}, "__main__")'
    code = f'import sys, runpy; {before}; {run}'
    return script(path, f'exec {sys.executable} -c \'{code}\' "$@"')


def set_up(tmp_path, path, *words, tools=REPO / 'tools', **env):
    env = {
        'PATH': str(path),
        'HOME': str(tmp_path),
        'MMGCVIT_VENV': str(tmp_path / 'venv'),
        'MMGCVIT_CACHE': str(tmp_path / 'cache'),
        **env,
    }
    return subprocess.run(
        [BASH, str(tools / 'setup_env.sh'), *words],
        env={name: value for name, value in env.items() if value is not None},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(result):
    """The error text of a set-up that failed as it should."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'FAILED: ' in result.stderr and 'remedy: ' in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr
    return result.stderr


# --- finding a Python ---


def test_no_python_at_all(tmp_path, commands):
    error = refused(set_up(tmp_path, commands))
    assert 'python3.11 not found' in error
    assert 'apt-get install python3.11' in error


@pytest.mark.parametrize('version', [(3, 13, 0), (3, 9, 18)])
def test_python_of_another_version(tmp_path, commands, version):
    before = f'sys.version_info = {(*version, "final", 0)!r}'.replace("'", '"')
    fake_python(commands / 'python3', before)
    error = refused(set_up(tmp_path, commands))
    assert f'python3 is Python {".".join(map(str, version))}' in error


def test_python_without_headers_and_venv(tmp_path, commands):
    before = 'import sysconfig; sysconfig.get_path = lambda _: "/nowhere"; '
    before += 'sys.modules["ensurepip"] = None'
    fake_python(commands / 'python3.11', before.replace('/nowhere', str(tmp_path)))
    error = refused(set_up(tmp_path, commands))
    assert 'lacks ensurepip and headers (Python.h)' in error
    assert 'install what is lacking' in error and 'python3.11-dev' in error


def test_a_command_that_only_prints_an_error_is_passed_over(tmp_path, commands):
    script(commands / 'python3.12', 'echo "command not found" >&2; exit 127')
    (commands / 'python3').symlink_to(sys.executable)
    result = set_up(tmp_path, commands, '--print-hash')
    assert result.returncode == 0, result.stderr


def test_the_named_python_is_the_only_candidate(tmp_path, commands):
    (commands / 'python3').symlink_to(sys.executable)
    error = refused(set_up(tmp_path, commands, PYTHON='/no/such/python'))
    assert '/no/such/python not found' in error and 'python3 ' not in error


def test_unknown_stack(tmp_path):
    result = set_up(tmp_path, os.environ['PATH'], '--stack', 'mmx', PYTHON=sys.executable)
    assert result.returncode == 2 and "'openmmlab', 'onedl'" in result.stderr


# --- checks before anything is downloaded ---


def test_no_compiler(tmp_path, commands):
    error = refused(set_up(tmp_path, commands, PYTHON=sys.executable))
    assert 'step 1 of 6' in error and 'no C++ compiler (c++, g++, clang++)' in error
    assert 'apt-get install g++' in error
    assert not (tmp_path / 'venv').exists()


def test_a_compiler_that_cannot_compile(tmp_path, commands):
    script(commands / 'g++', 'echo "g++: error: unrecognized option -std=c++20" >&2; exit 1')
    error = refused(set_up(tmp_path, commands, PYTHON=sys.executable))
    assert 'g++ cannot compile a c++20 program' in error and '| g++: error' in error


def test_named_compiler_that_is_missing(tmp_path, commands):
    error = refused(set_up(tmp_path, commands, PYTHON=sys.executable, CXX='g++-99 -m64'))
    assert 'CXX=g++-99 -m64 is not there' in error


def test_a_compiler_that_works_is_told_to_the_build(tmp_path, commands):
    script(commands / 'clang++', 'for last; do :; done; echo >"$last"')
    found = machine.check_compiler({'PATH': str(commands)}, 'c++20', 'why')
    assert found == {'CXX': 'clang++', 'CC': 'clang'}


def test_small_disk(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**12, 0, 4 * 10**9)
    monkeypatch.setattr(machine.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(errors.SetupError, match=r'4\.0 GB free at .* about \d+ GB needed') as info:
        machine.check_disk({}, tmp_path / 'a' / 'venv', tmp_path / 'cache')
    assert 'MMGCVIT_VENV=' in info.value.remedy
    machine.check_disk({'MMGCVIT_SKIP_DISK_CHECK': '1'}, tmp_path, tmp_path)


def test_jobs(monkeypatch):
    monkeypatch.setattr(machine, '_cores', lambda: 16)
    monkeypatch.setattr(machine, '_memory', lambda: 7.7 * 2**30)
    assert machine.compile_jobs({}) == 4
    assert machine.compile_jobs({'MAX_JOBS': '9'}) == 9
    monkeypatch.setattr(machine, '_memory', lambda: 0.5 * 2**30)
    assert machine.compile_jobs({}) == 1
    with pytest.raises(errors.SetupError, match='MAX_JOBS=two'):
        machine.compile_jobs({'MAX_JOBS': 'two'})


# --- causes of failed commands ---


@pytest.mark.parametrize(
    'line, what, remedy',
    [
        ('OSError: [Errno 28] No space left on device', 'disk is full', 'MMGCVIT_VENV='),
        ('g++: fatal error: Killed signal terminated program cc1plus', 'memory', 'MAX_JOBS=1'),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError': "
            'Connection refused\nERROR: No matching distribution found for torch==9',
            'index is out of reach',
            'HTTPS_PROXY',
        ),
        ('ERROR: No matching distribution found for torch==9', 'does not offer', 'PIP_INDEX_URL'),
        ('#error -- unsupported GNU version! gcc 99', 'nvcc refuses', 'MMGCVIT_CUDA_OPS=0'),
        ('x.cpp:1: error: no\nninja: build stopped: subcommand', 'compiler failed', 'CXX='),
        ('PermissionError: [Errno 13] Permission denied: /x', 'cannot be written', 'MMGCVIT_CACHE'),
        ('something else', r'exit status 3', 'see the log'),
    ],
)
def test_cause_of_a_failure(line, what, remedy, monkeypatch):
    monkeypatch.delenv('PIP_NO_INDEX', raising=False)
    error = errors.explain(['Collecting torch', *line.splitlines()], 3)
    assert what in error.what and remedy in error.remedy
    assert set(error.lines) & set(line.splitlines())


def test_no_index_is_named(monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    error = errors.explain(['ERROR: No matching distribution found for torch==9'], 1)
    assert 'PIP_NO_INDEX' in error.what


def test_telling_lines_are_preferred():
    lines = ['c++ -Werror a.cpp', 'a.cpp:3:1: error: no such type', *['[1/9] c++ b.cpp'] * 30]
    assert errors.telling_lines(lines) == ('a.cpp:3:1: error: no such type',)
    assert len(errors.telling_lines([f'[{i}/99] c++ b.cpp' for i in range(30)])) == 12


def test_repeated_attempts_are_shown_once():
    retry = (
        'WARNING: Retrying (Retry(total={}, read=None)) after broken by <a.B object at 0x{}>: no'
    )
    lines = errors.telling_lines([retry.format(4, '7f'), retry.format(3, '8e')])
    assert lines == ('WARNING: Retrying after broken by no',)


# --- the hash, and the versions it stands on ---


@pytest.fixture
def checkout(tmp_path):
    """A copy of all that decides what is installed."""
    copy = tmp_path / 'checkout'
    ignore = shutil.ignore_patterns('__pycache__')
    for name in ('tools/_setup', 'requirements'):
        shutil.copytree(REPO / name, copy / name, ignore=ignore)
    for name in ('tools/setup_env.sh', 'tools/run_tests.sh', 'setup.py'):
        shutil.copy(REPO / name, copy / name)
    return copy


def printed_hash(tmp_path, checkout, *words):
    tools = checkout / 'tools'
    path = os.environ['PATH']
    result = set_up(tmp_path, path, '--print-hash', *words, tools=tools, PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_hash_follows_the_content_and_not_the_place(tmp_path, checkout):
    before = printed_hash(tmp_path, REPO)
    assert before.isalnum() and len(before) == 16
    assert before == printed_hash(tmp_path, checkout)
    assert before != printed_hash(tmp_path, checkout, '--stack', 'onedl')
    with (checkout / 'setup.py').open('a') as file:
        file.write('# changed\n')
    assert before != printed_hash(tmp_path, checkout)


@pytest.mark.parametrize(
    'name, matters',
    [
        ('requirements/openmmlab.txt', True),
        ('requirements/dev.txt', True),
        ('requirements/onedl.txt', False),
        ('tools/setup_env.sh', True),
        ('tools/_setup/wheel.py', True),
        ('tools/run_tests.sh', False),
    ],
)
def test_what_the_hash_stands_on(checkout, monkeypatch, name, matters):
    monkeypatch.setattr(environment, 'CHECKOUT', checkout)
    monkeypatch.setattr(environment, 'REQUIREMENTS', checkout / 'requirements')
    monkeypatch.setattr(environment, 'SCRIPTS', checkout / 'tools')
    before = environment.content_hash('openmmlab')
    with (checkout / name).open('a') as file:
        file.write('# changed\n')
    assert (environment.content_hash('openmmlab') != before) == matters


@pytest.mark.parametrize('name', ['openmmlab', 'onedl', 'dev'])
def test_every_requirement_is_pinned(name):
    lines = (REPO / f'requirements/{name}.txt').read_text().splitlines()
    requirements = [line.split('#')[0].split(';')[0].strip() for line in lines]
    names = [line.split('==')[0] for line in requirements if line]
    assert all('==' in line for line in requirements if line)
    assert 'opencv-python' not in names
    if name != 'dev':
        pins = environment.pins(name)
        assert {'pip', *environment.BASE} <= set(pins)
        # from 80.9 on every command would begin with warnings, from 81 on none would run
        assert [int(n) for n in environment.version(pins['setuptools']).split('.')[:2]] < [80, 9]


def test_torch_is_the_only_hard_dependency():
    needs = importlib.metadata.requires('mmgcvit')
    assert [need for need in needs if 'extra ==' not in need] == ['torch>=2.1']
    for stack in environment.STACKS:
        assert len([need for need in needs if f'extra == "{stack}"' in need]) >= 5


# --- the environment on disk ---


@pytest.fixture
def made(tmp_path):
    """An environment that looks complete."""
    env = environment.Environment(tmp_path / 'venv')
    env.python.parent.mkdir(parents=True)
    env.python.symlink_to(sys.executable)
    info = env.path / 'lib/python3.11/site-packages/mmgcvit-0.dist-info'
    info.mkdir(parents=True)
    place = {'url': environment.CHECKOUT.as_uri(), 'dir_info': {'editable': True}}
    (info / 'direct_url.json').write_text(json.dumps(place))
    env.records.mkdir()
    env.begin('openmmlab')
    stamp = {'hash': environment.content_hash('openmmlab'), 'variant': 'cpu', 'cuda': None}
    env.write_stamp({**stamp, 'summary': 'torch 9', 'warning': ''})
    return env


def test_nothing_to_do_is_quick_and_says_so(tmp_path, made):
    began = time.monotonic()
    result = set_up(tmp_path, os.environ['PATH'])
    assert result.returncode == 0, result.stderr
    assert f'{made.path} is up to date: torch 9' in result.stdout
    assert f'source {made.path}/bin/activate' in result.stdout
    assert time.monotonic() - began < 3


def test_the_other_stack_is_refused(tmp_path, made):
    error = refused(set_up(tmp_path, os.environ['PATH'], '--stack', 'onedl'))
    assert 'holds the openmmlab stack' in error and 'MMGCVIT_VENV' in error
    assert made.stamp


def test_without_an_option_the_stack_is_the_environments(tmp_path, made):
    made.begin('onedl')
    made.write_stamp({**made.stamp, 'hash': environment.content_hash('onedl')})
    result = set_up(tmp_path, os.environ['PATH'])
    assert 'is up to date' in result.stdout, result.stderr


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv/thesis.tex').write_text('years of work')
    error = refused(set_up(tmp_path, os.environ['PATH'], PYTHON=sys.executable))
    assert 'was not made by this script' in error
    assert [path.name for path in (tmp_path / 'venv').iterdir()] == ['thesis.tex']


def test_reasons_to_make_it_anew(made, monkeypatch):
    assert made.why_anew('openmmlab', False) == ''
    made.installing.touch()
    assert 'interrupted' in made.why_anew('openmmlab', False)
    made.installing.unlink()
    monkeypatch.setattr(environment, 'requirements_hash', lambda _: 'new')
    assert 'versions have changed' in made.why_anew('openmmlab', False)
    monkeypatch.undo()
    moved = made.path.with_name('moved')
    made.path.rename(moved)
    assert 'moved' in environment.Environment(moved).why_anew('openmmlab', False)


def test_another_python_counts_only_when_asked_for(made):
    record = made.records / 'env.json'
    record.write_text(json.dumps({**made.made_for, 'python': '3.9'}))
    assert made.why_anew('openmmlab', False) == ''
    assert 'has Python 3.9' in made.why_anew('openmmlab', True)


def test_a_broken_python_is_a_reason(made):
    made.python.unlink()
    made.python.symlink_to('/no/such/python')
    assert 'gone' in made.why_anew('openmmlab', False)


def test_clearing_leaves_a_mark_until_the_end(made):
    made.clear()
    assert [path.name for path in made.path.iterdir()] == ['.mmgcvit']
    assert [path.name for path in made.records.iterdir()] == ['installing']
    assert made.why_anew('openmmlab', False)


def test_an_environment_of_another_checkout_is_noticed(made):
    assert made.points_here()
    path = next(made.path.glob('lib/*/site-packages/*/direct_url.json'))
    path.write_text(json.dumps({'url': 'file:///elsewhere', 'dir_info': {'editable': True}}))
    assert not made.points_here()


def test_a_second_set_up_waits_for_the_first(tmp_path):
    notes = []
    first = environment.Lock(tmp_path, 'x', notes.append)
    second = threading.Thread(target=lambda: environment.Lock(tmp_path, 'x', notes.append))
    second.start()
    time.sleep(0.2)
    assert notes == ['waiting for another set-up that works on x']
    assert second.is_alive()
    with environment.Lock(tmp_path, 'y', notes.append):
        assert len(notes) == 1
    first.__exit__()
    second.join(5)
    assert not second.is_alive() and 'done' in notes[-1]


def test_cuda_operators_are_added_but_never_taken_away_unasked(tmp_path, made, monkeypatch):
    def other(stamp, **environ):
        setup = cli.Setup(made, 'openmmlab', runner.Screen(6), environ)
        return setup._other_operators(stamp)

    toolkit = fake_toolkit(tmp_path / 'cuda')
    cpu, both = {'variant': 'cpu', 'cuda': '13.0'}, {'variant': 'cu130-9.0', 'cuda': '13.0'}
    assert other(cpu, CUDA_HOME=str(toolkit))
    assert not other({**cpu, 'cuda': None}, CUDA_HOME=str(toolkit))
    assert other(cpu, MMGCVIT_CUDA_OPS='1')
    assert not other(both)
    assert other(both, MMGCVIT_CUDA_OPS='0')


# --- running commands ---


@pytest.fixture
def run(tmp_path):
    screen = runner.Screen(1)
    return runner.Runner(
        screen, tmp_path / 'log', dict(os.environ), os.open(os.devnull, os.O_RDONLY)
    )


def test_a_failed_command_is_logged_and_explained(run):
    with pytest.raises(errors.SetupError, match='disk is full') as info:
        run.run([BASH, '-c', 'echo first; echo No space left on device >&2; exit 5'])
    assert info.value.lines == ('No space left on device',)
    assert 'first\nNo space' in run.log_path.read_text()


def test_a_full_disk_does_not_hide_the_output(run):
    with open('/dev/full', 'wb', buffering=0) as run._log:
        assert run.run([BASH, '-c', 'echo still here']) == ['still here']


def test_build_progress():
    progress = runner.BuildProgress()
    assert 'first files' in str(progress)
    progress._began -= 60
    progress.see('  [20/80] c++ -MMD x.cpp\n')
    assert str(progress) == '20/80 files, 1:00 elapsed, about 3:00 left'
    progress._began -= 10
    progress._done_at -= 10
    assert str(progress) == '20/80 files, 1:10 elapsed, about 2:50 left'


def test_lines_are_shown_now_and_then_where_there_is_no_terminal(run, capsys, monkeypatch):
    monkeypatch.setattr(runner, 'LINE_EVERY_S', 0.3)
    run.run([BASH, '-c', 'echo Collecting torch; sleep 1'])
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 3 and all(line.endswith('Collecting torch') for line in lines)


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl')
def test_commands_end_with_a_killed_set_up(tmp_path):
    code = (
        f'import os, sys; sys.path.insert(0, {str(REPO / "tools")!r})\n'
        'from pathlib import Path\nfrom _setup.runner import Runner, Screen\n'
        f'run = Runner(Screen(1), Path({str(tmp_path / "log")!r}), dict(os.environ), 0)\n'
        f'run.run([{BASH!r}, "-c", "echo $$ >{tmp_path}/pid; sleep 60; true"])\n'
    )
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.DEVNULL)
    pid = tmp_path / 'pid'
    for _ in range(100):
        if pid.exists() and pid.read_text().strip():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    state = Path(f'/proc/{pid.read_text().strip()}/stat')
    assert not state.exists() or state.read_text().split()[2] in 'ZX'


# --- mmcv's wheel ---


def make_wheel(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as file:
        for name in names:
            file.writestr(name, 'content')
    return path


def test_only_a_whole_wheel_with_operators_is_reused(tmp_path):
    without = make_wheel(tmp_path / 'a/mmcv-2-py3.whl', 'mmcv/__init__.py')
    assert not wheel.has_operators(without) and wheel.cached(tmp_path / 'a') is None
    good = make_wheel(tmp_path / 'b/onedl_mmcv-2-cp311.whl', 'mmcv/_ext.cpython-311.so')
    assert wheel.cached(tmp_path / 'b') == good
    good.write_bytes(good.read_bytes()[:-30])
    assert wheel.cached(tmp_path / 'b') is None


def test_a_wheel_is_kept_whole(tmp_path):
    made = make_wheel(tmp_path / 'mmcv-2.whl', 'mmcv/_ext.so')
    leftover = tmp_path / 'cache/.1.part'
    leftover.parent.mkdir()
    leftover.touch()
    kept = wheel.keep(made, tmp_path / 'cache')
    assert kept.read_bytes() == made.read_bytes()
    assert list((tmp_path / 'cache').iterdir()) == [kept]


def test_the_key_names_all_that_a_wheel_depends_on():
    key = wheel.key('onedl', '2.3.6', '2.14.1+cu130', 'cu130-9.0')
    for word in (
        'onedl',
        'mmcv2.3.6',
        'torch2.14.1+cu130',
        f'cp3{sys.version_info[1]}',
        'cu130-9.0',
    ):
        assert word in key.split('-') or word in key


class StandInRunner:
    """Records commands; "pip" leaves an sdist, then a wheel with the given file in it."""

    def __init__(self, name):
        self.name = name
        self.commands = []

    def run(self, command, *, env, **_):
        self.commands.append(([str(word) for word in command], env))
        if 'download' in command:
            text = b"flags = ['-std=c++17', '-O2']\n"
            with tarfile.open(
                command[command.index('-d') + 1] / 'mmcv-2.tar.gz', 'w:gz'
            ) as archive:
                member = tarfile.TarInfo('mmcv-2/setup.py')
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        else:
            make_wheel(command[command.index('-w') + 1] / 'mmcv-2-cp311.whl', self.name)


@pytest.mark.parametrize('version, standard', [('2.14.1+cu130', 20), ('2.9.0', 17), ('3.0.0', 20)])
def test_the_source_is_built_for_the_standard_torch_needs(tmp_path, version, standard):
    stand_in = StandInRunner('mmcv/_ext.so')
    torch = cuda.TorchInfo(version, None)
    built = wheel.build(stand_in, Path('python'), 'mmcv==2', torch, {'MAX_JOBS': '3'}, tmp_path)
    assert built.exists()
    assert f'-std=c++{standard}' in (tmp_path / 'source/mmcv-2/setup.py').read_text()
    for command, env in stand_in.commands:
        assert {'--no-build-isolation', '--no-deps', '--no-cache-dir'} <= set(command)
        assert env == {'MAX_JOBS': '3', 'MMCV_WITH_OPS': '1'}


def test_a_wheel_without_operators_is_an_error(tmp_path):
    with pytest.raises(errors.SetupError, match='without operators'):
        torch = cuda.TorchInfo('2.14.1', None)
        wheel.build(StandInRunner('mmcv/ops.py'), Path('p'), 'mmcv==2', torch, {}, tmp_path)


# --- CPU or CUDA ---


def fake_toolkit(root, release='13.0', without=()):
    script(root / 'bin/nvcc', f'echo "Cuda compilation tools, release {release}, V{release}.48"')
    for name in cuda.HEADERS:
        if name not in without:
            (root / 'include').mkdir(exist_ok=True)
            (root / 'include' / name).touch()
    (root / 'lib64').mkdir()
    (root / 'lib64/libcudart.so').touch()
    return root


def choose(root, gpus=(), version='13.0', **environ):
    torch = cuda.TorchInfo('2.14.1', version, gpus)
    return cuda.choose(torch, {'CUDA_HOME': str(root), 'PATH': '/none', **environ})


def test_a_complete_toolkit_gives_cuda_operators(tmp_path):
    choice = choose(fake_toolkit(tmp_path / 'cuda'))
    assert choice.variant == 'cu130-7.5-8.0-9.0+PTX'
    assert choice.env['FORCE_CUDA'] == '1'
    assert choice.env['TORCH_CUDA_ARCH_LIST'] == cuda.DEFAULT_ARCHITECTURES
    assert choice.env['CUDA_HOME'] == str(tmp_path / 'cuda')
    assert 'no GPU here' in choice.reason and not choice.warning


def test_architectures_are_the_gpus_or_what_was_asked_for(tmp_path):
    root = fake_toolkit(tmp_path / 'cuda')
    assert choose(root, ('9.0', '8.6', '9.0')).env['TORCH_CUDA_ARCH_LIST'] == '8.6;9.0'
    choice = choose(root, ('9.0',), TORCH_CUDA_ARCH_LIST='8.0 8.9')
    assert choice.env['TORCH_CUDA_ARCH_LIST'] == '8.0 8.9'
    assert choice.variant == 'cu130-8.0-8.9'


@pytest.mark.parametrize(
    'toolkit, version, problem',
    [
        (dict(without=('cublas_v2.h', 'cusparse.h')), '13.0', 'lacks cublas_v2.h, cusparse.h'),
        (dict(release='12.8'), '13.0', 'is CUDA 12.8 and torch was built with 13.0'),
        (dict(), None, 'built without CUDA'),
        (None, '13.0', 'no nvcc was found'),
    ],
)
def test_an_unusable_toolkit_gives_cpu_operators_and_says_why(
    tmp_path, monkeypatch, toolkit, version, problem
):
    root = tmp_path / 'cuda'
    if toolkit is None:
        monkeypatch.setattr(cuda, '_roots', lambda _: [])
    else:
        fake_toolkit(root, **toolkit)
        monkeypatch.setattr(cuda, '_roots', lambda _: [root])
    choice = choose(root, version=version)
    assert choice.variant == 'cpu' and problem in choice.reason
    assert choice.env == {'FORCE_CUDA': '0', 'CUDA_VISIBLE_DEVICES': ''}
    assert not choice.warning
    warning = choose(root, ('9.0',), version=version).warning
    assert 'detectors will run on the CPU' in warning and 'Remedy: ' in warning
    with pytest.raises(errors.SetupError, match='MMGCVIT_CUDA_OPS=1, but'):
        choose(root, version=version, MMGCVIT_CUDA_OPS='1')


def test_cuda_operators_can_be_declined(tmp_path):
    choice = choose(fake_toolkit(tmp_path / 'cuda'), ('9.0',), MMGCVIT_CUDA_OPS='0')
    assert choice.variant == 'cpu' and 'unset MMGCVIT_CUDA_OPS' in choice.warning
    with pytest.raises(errors.SetupError, match='MMGCVIT_CUDA_OPS=yes'):
        choose(tmp_path, MMGCVIT_CUDA_OPS='yes')


def test_a_wrapper_on_the_path_does_not_hide_the_toolkit(tmp_path):
    fake_toolkit(tmp_path / 'cuda')
    script(tmp_path / 'usr/bin/nvcc', f'exec {tmp_path}/cuda/bin/nvcc "$@"')
    environ = {'PATH': str(tmp_path / 'usr/bin'), 'CUDA_PATH': str(tmp_path / 'cuda')}
    assert cuda.find_toolkit('13.0', environ).root == tmp_path / 'cuda'


# --- run_tests.sh and .ci/run, with stand-ins for what they call ---


@pytest.fixture
def stand_ins(tmp_path, checkout):
    """A checkout whose set-up and Python only record how they were called."""
    calls = tmp_path / 'calls'
    script(checkout / 'tools/setup_env.sh', f'echo "setup $*" >>{calls}')
    body = f'echo "$*" >>{calls}; [[ "$*" != *"${{BREAK:-nothing}}"* ]]'
    script(tmp_path / 'venv/bin/python', body)

    def call(command, **env):
        env = {**os.environ, 'MMGCVIT_VENV': str(tmp_path / 'venv'), **env}
        calls.unlink(missing_ok=True)
        result = subprocess.run(
            [BASH, *command], cwd=checkout, env=env, capture_output=True, text=True
        )
        return result, calls.read_text().splitlines()

    return call


def test_parts_of_run_tests(stand_ins):
    result, calls = stand_ins(['tools/run_tests.sh', '-k', 'a b'])
    assert result.returncode == 0, result.stderr
    assert calls == [
        'setup ',
        '-m ruff format --check .',
        '-m ruff check .',
        '-m pytest -m not slow -k a b',
    ]
    result, calls = stand_ins(['tools/run_tests.sh', '--all', '--stack', 'onedl', '-x'])
    assert calls[0] == 'setup --stack onedl' and calls[-1] == '-m pytest -x'


@pytest.mark.parametrize('part', ['ruff format', 'ruff check', 'pytest'])
def test_run_tests_fails_with_any_part_and_runs_the_others(stand_ins, part):
    result, calls = stand_ins(['tools/run_tests.sh'], BREAK=part)
    assert result.returncode == 1
    assert len(calls) == 4
    verdicts = [line for line in result.stdout.splitlines() if 'FAILED' in line]
    assert len(verdicts) == 1 and verdicts[0].startswith(part)


def test_ci_names_its_environment_by_the_hash_and_removes_old_ones(tmp_path, checkout):
    (checkout / '.ci').mkdir()
    shutil.copy(REPO / '.ci/run', checkout / '.ci/run')
    assert os.access(REPO / '.ci/run', os.X_OK)
    envs = tmp_path / 'cache/envs'
    script(checkout / 'tools/setup_env.sh', 'echo abc123')
    script(checkout / 'tools/run_tests.sh', 'echo "venv $MMGCVIT_VENV, $*"')
    for name, days in [('ci-old', 8), ('ci-recent', 6), ('ci-abc123', 30), ('mine', 30)]:
        (envs / name).mkdir(parents=True)
        then = time.time() - days * 24 * 3600
        os.utime(envs / name, (then, then))
    env = {**os.environ, 'MMGCVIT_CACHE': str(tmp_path / 'cache')}
    result = subprocess.run(
        [checkout / '.ci/run'], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert f'venv {envs}/ci-abc123, --all' in result.stdout
    assert f'removing {envs}/ci-old' in result.stdout
    assert sorted(path.name for path in envs.iterdir()) == ['ci-abc123', 'ci-recent', 'mine']


def test_shell_scripts_are_clean():
    shellcheck = Path(sys.executable).with_name('shellcheck')
    if not shellcheck.exists():
        pytest.skip('shellcheck is not installed')
    scripts = [*sorted((REPO / 'tools').glob('*.sh')), REPO / '.ci/run']
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
