"""The steps of a set-up, and when there is nothing to do."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from . import cuda, machine, wheel
from .environment import (
    BASE,
    CHECKOUT,
    STACKS,
    Environment,
    Lock,
    content_hash,
    pins,
    requirement_files,
    version,
)
from .errors import SetupError, from_os_error
from .runner import Runner, Screen, clock

STEPS = 6
# torch's answer is the last line; importing it may print warnings before.
ASK_TORCH = """
import json, torch
gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
gpus = ['%d.%d' % torch.cuda.get_device_capability(i) for i in gpus]
print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, 'gpus': gpus}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog='tools/setup_env.sh', allow_abbrev=False)
    parser.add_argument('--stack', choices=STACKS)
    parser.add_argument('--print-hash', action='store_true')
    parser.add_argument('--venv', type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.print_hash:
        print(content_hash(args.stack or STACKS[0]))
        return 0
    environment = Environment(Path(os.path.abspath(args.venv)))
    stack = args.stack or environment.made_for.get('stack', STACKS[0])
    for number in _INTERRUPTIONS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    screen = Screen(STEPS)
    setup = Setup(environment, stack, screen, os.environ)
    try:
        setup.run()
    except SetupError as error:
        return _report(error, setup)
    except OSError as error:
        return _report(from_os_error(error), setup)
    except KeyboardInterrupt:
        screen.clear_status()
        print(f'\ninterrupted in {screen.current}; the same command goes on from here', flush=True)
        return 130
    return 0


_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(*_) -> None:
    # One is enough: a second would interrupt the clearing up.
    for number in _INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _report(error: SetupError, setup: Setup) -> int:
    setup.screen.clear_status()
    sys.stdout.flush()
    place = f'{setup.screen.current}: ' if setup.screen.started else ''
    lines = [f'FAILED: {place}{error.what}']
    lines += [f'  | {line}' for line in error.lines]
    if setup.runner:
        lines.append(f'  log: {setup.runner.log_path}')
    lines.append(f'  remedy: {error.remedy}')
    print('\n'.join(lines), file=sys.stderr)
    return 1


class Setup:
    """One run of the script.

    Args:
        environment: The environment to make, or to bring up to date.
        stack: A member of ``STACKS``.
        screen: Where steps are shown.
        environ: The variables the script was started with.
    """

    def __init__(
        self, environment: Environment, stack: str, screen: Screen, environ: Mapping[str, str]
    ):
        self.environment = environment
        self.stack = stack
        self.screen = screen
        self.environ = environ
        self.cache = _cache_folder(environ)
        self.pins = pins(stack)
        self.mmcv = self.pins['mmcv' if stack == 'openmmlab' else 'onedl-mmcv']
        self.runner: Runner | None = None
        self.began = time.monotonic()

    def run(self) -> None:
        self.environment.check_ours(self.stack)
        if self._nothing_to_do():
            self._summary(self.environment.stamp, 'is up to date')
            return
        with Lock(self.cache / 'locks', str(self.environment.path), self._note) as lock:
            # Another set-up may have done it meanwhile.
            self.environment.check_ours(self.stack)
            if self._nothing_to_do():
                self._summary(self.environment.stamp, 'is up to date')
                return
            try:
                if self._complete():
                    self._point_here(lock, self.environment.stamp)
                else:
                    self._install(lock)
            finally:
                shutil.rmtree(self.environment.tmp, ignore_errors=True)

    def _note(self, text: str) -> None:
        self.screen.note(text, indent='' if not self.screen.started else '      ')

    def _complete(self) -> bool:
        """Whether all is installed, if perhaps for another checkout of the same content."""
        environment, stamp = self.environment, self.environment.stamp
        asked = bool(self.environ.get('PYTHON'))
        return (
            stamp.get('hash') == content_hash(self.stack)
            and not environment.why_anew(self.stack, asked)
            and not self._other_operators(stamp)
        )

    def _nothing_to_do(self) -> bool:
        return self._complete() and self.environment.points_here()

    def _other_operators(self, stamp: dict) -> bool:
        """Whether CUDA operators have become possible, or were asked for or against.

        Left to itself an environment never loses them: a shell without nvcc on
        its path is no reason to build anew.
        """
        wish = self.environ.get('MMGCVIT_CUDA_OPS') or 'auto'
        has_cuda = stamp.get('variant', 'cpu') != 'cpu'
        if wish != 'auto':
            return has_cuda != (wish == '1')
        torch = cuda.TorchInfo('', stamp.get('cuda'))
        return not has_cuda and cuda.choose(torch, self.environ).variant != 'cpu'

    def _summary(self, stamp: dict, state: str) -> None:
        self.screen.note(f'{self.environment.path} {state}: {stamp["summary"]}', indent='')
        if stamp.get('warning'):
            self.screen.note(f'WARNING: {stamp["warning"]}', indent='')
        activate = f'source {self.environment.path}/bin/activate'
        self.screen.note(f'to use it by hand: {activate}', indent='')

    # --- the steps ---

    def _install(self, lock: Lock) -> None:
        environment = self.environment
        self.screen.step(f'checking this machine for the {self.stack} stack')
        self._check_machine()
        anew = environment.why_anew(self.stack, bool(self.environ.get('PYTHON')))
        reuse = environment.python.exists() and not anew
        self.screen.step(f'virtual environment {environment.path}')
        environment.drop_stamp()
        if not reuse:
            if anew:
                self._note(f'is made anew: {anew}')
            environment.clear()
        self._start(lock)
        if reuse:
            self._note('is there already and is brought up to date')
        else:
            environment.begin(self.stack)
            self.runner.run([sys.executable, '-m', 'venv', environment.path])
            environment.installing.unlink()
        self._install_base()
        self.screen.step(self.mmcv)
        torch = self._ask_torch()
        choice = cuda.choose(torch, self.environ)
        self._install_mmcv(torch, choice)
        self._install_rest()
        stamp = self._verify(torch, choice)
        environment.write_stamp(stamp)
        self._summary(stamp, f'is ready after {clock(time.monotonic() - self.began)} min')

    def _start(self, lock: Lock) -> None:
        """From here on commands can be run."""
        tmp = self.environment.fresh_tmp()
        env = {
            **self.environ,
            # pip unpacks gigabytes: beside the environment there is room for them.
            'TMPDIR': str(tmp),
            'PIP_USER': '0',
            'PIP_DISABLE_PIP_VERSION_CHECK': '1',
            'PIP_NO_INPUT': '1',
            'PYTHONNOUSERSITE': '1',
            'PYTHONUNBUFFERED': '1',
        }
        for name in ('PIP_TARGET', 'PIP_PREFIX', 'PIP_REQUIRE_HASHES', 'VIRTUAL_ENV'):
            env.pop(name, None)
        self.runner = Runner(self.screen, self.environment.log, env, lock.fd)

    def _check_machine(self) -> None:
        folders = self.cache.glob('wheels/' + wheel.key(self.stack, version(self.mmcv), '*'))
        if not any(wheel.cached(folder) for folder in folders):
            self._compiler()
        if not self.environment.stamp and not self._has('torch'):
            machine.check_disk(self.environ, self.environment.path, self.cache)

    def _compiler(self) -> dict[str, str]:
        torch = version(self.pins['torch'])
        standard = 'c++20' if wheel.needs_cpp20(torch) else 'c++17'
        return machine.check_compiler(self.environ, standard, 'mmcv is compiled on this machine')

    def _has(self, name: str) -> bool:
        return any(self.environment.path.glob(f'lib/python3*/site-packages/{name}-*.dist-info'))

    def _pip(self, *words: str | Path) -> None:
        """pip install; while it changes files the environment is marked as unreliable."""
        self.environment.installing.touch()
        done = False
        try:
            self.runner.run([self.environment.python, '-m', 'pip', 'install', *words])
            done = True
        finally:
            touched = any('Installing collected packages' in line for line in self.runner.output)
            if done or not touched:
                self.environment.installing.unlink()

    def _install_base(self) -> None:
        torch, vision = version(self.pins['torch']), version(self.pins['torchvision'])
        self.screen.step(f'torch {torch}, torchvision {vision} and what mmcv is built with')
        constraints = requirement_files(self.stack)[0]
        self._pip(self.pins['pip'])
        self._pip('-c', constraints, *(self.pins[name] for name in BASE))

    def _ask_torch(self) -> cuda.TorchInfo:
        answer = json.loads(self.runner.run([self.environment.python, '-c', ASK_TORCH])[-1])
        return cuda.TorchInfo(answer['version'], answer['cuda'], tuple(answer['gpus']))

    def _install_mmcv(self, torch: cuda.TorchInfo, choice: cuda.Choice) -> None:
        kind = 'CPU operators only' if choice.variant == 'cpu' else 'CPU and CUDA operators'
        self._note(f'{kind}: {choice.reason}')
        if choice.warning:
            self._note(f'WARNING: {choice.warning}')
        key = wheel.key(self.stack, version(self.mmcv), torch.version, choice.variant)
        if _read(self.environment.records / 'mmcv') == key:
            return
        folder = self.cache / 'wheels' / key
        with Lock(self.cache / 'locks', f'the wheel {key}', self._note):
            path = wheel.cached(folder)
            if path:
                self._note(f'built before: {path}')
            else:
                path = wheel.keep(self._build_mmcv(torch, choice), folder)
                self._note(f'kept for other environments: {path}')
        self._pip('--no-deps', '--force-reinstall', '--no-index', path)
        (self.environment.records / 'mmcv').write_text(key)

    def _build_mmcv(self, torch: cuda.TorchInfo, choice: cuda.Choice) -> Path:
        jobs = machine.compile_jobs(self.environ)
        env = {**self._compiler(), **choice.env, 'MAX_JOBS': str(jobs)}
        self._note(f'is compiled now: {wheel.expected_time(jobs, choice)}, once for this machine')
        python, work = self.environment.python, self.environment.fresh_tmp()
        return wheel.build(self.runner, python, self.mmcv, torch, env, work)

    def _install_rest(self) -> None:
        self.screen.step(f'the other packages of {self.stack}, the test tools, mmgcvit')
        files = [word for path in requirement_files(self.stack) for word in ('-r', path)]
        # The files are complete; what the packages declare would bring
        # opencv-python, and setuptools without pkg_resources.
        self._pip('--no-deps', '--no-build-isolation', *files)
        self._pip_editable()

    def _pip_editable(self) -> None:
        self._pip('--no-deps', '--no-build-isolation', '--editable', CHECKOUT)

    def _point_here(self, lock: Lock, stamp: dict) -> None:
        self._start(lock)
        self.screen.total = 1
        self.screen.step(f'pointing mmgcvit in {self.environment.path} at {CHECKOUT}')
        self._pip_editable()
        self._summary(stamp, 'is up to date')

    def _verify(self, torch: cuda.TorchInfo, choice: cuda.Choice) -> dict:
        self.screen.step('importing everything, running an operator')
        script = Path(__file__).with_name('verify.py')
        # Isolated: neither this folder nor the checkout may lend modules.
        command = [self.environment.python, '-I', '-W', 'ignore', script]
        versions = json.loads(self.runner.run(command, cwd=self.environment.tmp)[-1])
        python = '.'.join(map(str, sys.version_info[:3]))
        operators = 'CPU' if choice.variant == 'cpu' else choice.variant
        words = [f'{name} {number}' for name, number in versions.items()]
        return {
            'hash': content_hash(self.stack),
            'cuda': torch.cuda,
            'variant': choice.variant,
            'warning': choice.warning,
            'summary': f'Python {python}, {", ".join(words)} ({operators} operators)',
        }


def _cache_folder(environ: Mapping[str, str]) -> Path:
    base = environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(os.path.abspath(environ.get('MMGCVIT_CACHE') or os.path.join(base, 'mmgcvit')))


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ''
