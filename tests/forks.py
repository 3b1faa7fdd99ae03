"""Commands of this project in forks of a process that has imported what they need.

A Python that starts anew spends three to six seconds on imports, and tests of killing and resuming
start dozens. What a fork shares with its siblings is what was imported and the seed of hashes, so a
few tests still start real commands.
"""

import contextlib
import functools
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAVED = 75  # exit code of a training that SIGTERM has ended, in all processes by themselves
# of the processes that the tests start, forked or not
PATHS = [ROOT, ROOT / 'tests', ROOT / 'tests' / 'data' / 'scripts']
ENVIRONMENT = {
    'PYTHONPATH': os.pathsep.join([*map(str, PATHS), os.environ.get('PYTHONPATH', '')]),
    # more threads than one are slower on small tensors, and do not survive a fork
    'OMP_NUM_THREADS': '1',
}
IMPORTS = [
    *('forks', 'mmgcvit.engine', 'mmgcvit.visualization'),
    *('mmdet.apis', 'mmdet.engine', 'mmseg.apis', 'mmseg.datasets', 'mmseg.engine'),
    *('mmseg.evaluation', 'mmpretrain.datasets', 'mmpretrain.engine', 'mmpretrain.visualization'),
    # for what mmengine writes of the environment; for the start of a fork
    *('torchvision', 'pkg_resources', 'pytest'),
    'preloaded',
]


class Fork:
    """A Python script that runs in processes of its own session; all of them can be killed."""

    def __init__(self, script, *arguments, out, cwd=ROOT, ranks=1, file_size=None, **variables):
        """Start it.

        Args:
            script: Path of the script, from the current folder.
            *arguments: What follows it on the command line.
            out: File of what it prints.
            cwd: The current folder.
            ranks: Number of processes, connected with each other if there are several.
            file_size: Largest file that may be written, in bytes.
            **variables: Additions to the environment.
        """
        self.out = Path(out)
        self.out.write_text('')
        if ranks > 1:
            variables |= dict(
                WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port()
            )
        command = [str(part) for part in (script, *arguments)]
        context = start_server()
        self._process = context.Process(
            target=_run, args=(command, self.out, cwd, ranks, file_size, variables)
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        """Return the exit code, negative that of a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout):
        """Wait for its end and return the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.signal(signal.SIGKILL)
            raise TimeoutError(f'runs for more than {timeout} s: {self.out.read_text()[-3000:]}')
        return self._process.exitcode

    def signal(self, number):
        """Send a signal to all of its processes at once."""
        # it may not have begun its session yet
        deadline = time.monotonic() + 60
        while os.getpgid(self.pid) != self.pid and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(self.pid, number)


def run(script, *arguments, out, timeout=240, **settings):
    """Run a script to its end; return its exit code and what it printed."""
    code = Fork(script, *arguments, out=out, **settings).wait(timeout)
    return code, Path(out).read_text()


def run_anew(script, *arguments, timeout=240, **variables):
    """As `run`, but in a Python that starts anew, as a user does."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


def free_port():
    """A port that no outgoing connection takes meanwhile, as a string."""
    # others begin to look elsewhere, as tests of another checkout may run on this machine
    first = 20000 + (os.getpid() * 7919 + free_port.calls * 101) % 10000
    free_port.calls += 1
    for port in range(first, 32768):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(('', port))
            return str(port)
    raise AssertionError('no free port')


free_port.calls = 0


@functools.cache
def start_server():
    """Start the process that is forked, wait for its imports, and return its context."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(IMPORTS)
    # the server keeps the environment that it starts in, and reads no other path
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    first = context.Process(target=int)
    first.start()
    first.join()
    assert first.exitcode == 0
    return context


def _run(command, out, cwd, ranks, file_size, variables):
    """What a fork does."""
    os.setsid()
    # which shells have what they start in the background ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(out, 'w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # pytest's ones are not files of this process
    sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
    os.environ.update(variables)
    os.chdir(cwd)
    # it has taken over that of pytest's process; Python adds the folder of the script
    sys.path[:0] = [str(Path(command[0]).resolve().parent), *map(str, PATHS)]
    # processes that a tool spawns would import everything again
    contexts = multiprocessing.get_context
    multiprocessing.get_context = lambda name=None: contexts('fork' if name == 'spawn' else name)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if ranks > 1:
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
                break
            children.append(child)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the others of its group
            sys.exit(_wait_as_launcher(children))
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')


def _wait_as_launcher(children):
    """Return the exit code of processes; as torchrun and srun do, end the others with the first."""
    ended, failed = {}, False
    while len(ended) < len(children):
        child, status = os.wait()
        ended[child] = os.waitstatus_to_exitcode(status)
        if ended[child] not in (0, SAVED) and not failed:
            failed = True
            for other in set(children) - set(ended):
                os.kill(other, signal.SIGTERM)
    codes = set(ended.values()) - ({-signal.SIGTERM} if failed else set())
    return codes.pop() if len(codes) == 1 else f'they ended with {ended}, not with one code'
