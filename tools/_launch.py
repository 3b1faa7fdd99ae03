"""Start the processes of a run on this node, as tools/dist_*.sh do:

    python tools/_launch.py PROCESSES SCRIPT [arguments]

The processes get torchrun's environment variables. NNODES, NODE_RANK, MASTER_ADDR and PORT are read
from the environment. Unlike torchrun, this adds no report to the error of a process, and exits with
its exit code.

The other processes end with the first one that fails. SIGTERM, SIGINT and SIGHUP are passed on to
the processes, which then have time to save a checkpoint.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVED = 75  # exit code of a training that saved a checkpoint because of SIGTERM
# exit codes of processes that have printed their error, see mmgcvit/engine/tool.py
REPORTED = (1, 2, SAVED, 128 + signal.SIGINT)
TIME_TO_SAVE = 60  # seconds
TIME_TO_END = 30  # seconds, after another process has failed
TIME_TO_ABORT = 3  # seconds in which the other processes of an NCCL operation abort, too
CAUSES: dict[int, str] = {
    signal.SIGKILL: 'the node is probably out of memory (dmesg shows it): reduce '
    'train_dataloader.batch_size or train_dataloader.num_workers',
    # torch also aborts a process whose NCCL operation has failed or timed out
    signal.SIGABRT: 'a library aborted it. If NCCL is named above, an operation of all processes '
    'failed or timed out: NCCL_DEBUG=INFO prints details, and env_cfg.dist_cfg.timeout=SECONDS '
    'allows more time',
    signal.SIGBUS: 'shared memory is probably full: enlarge /dev/shm (docker run --shm-size=8g), '
    'or reduce train_dataloader.num_workers',
}
OTHER_CAUSE = 'compiled code crashed: check the installation with tools/check_env.py'


def main() -> int:
    """Run the processes and return the exit code of the launcher."""
    processes, *command = sys.argv[1:]
    run = Run()
    # signals that are ignored, such as SIGHUP under nohup, stay ignored
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, run.forward)
    run.start(int(processes), [sys.executable, '-u', *command])
    return run.wait()


class Run:
    """The processes of this node, by local rank."""

    def __init__(self) -> None:
        self._first_rank = 0
        self._processes: list[subprocess.Popen] = []
        self._codes: dict[int, int] = {}  # exit codes, in the order in which the processes ended
        self._crashed: dict[int, int] = {}  # rank of each process that a signal killed: the signal
        self._running: list[int] = []  # ranks of the others, when a process had aborted
        self._received: list[int] = []
        self._failed_at: float | None = None
        self._deadline: float | None = None

    def start(self, number: int, command: list[str]) -> None:
        """Start ``number`` processes, connected with those of the other nodes."""
        nodes, node = int(os.environ.get('NNODES', 1)), int(os.environ.get('NODE_RANK', 0))
        self._first_rank = node * number
        environment = os.environ | {
            'WORLD_SIZE': str(nodes * number),
            'LOCAL_WORLD_SIZE': str(number),
            'GROUP_RANK': str(node),
            'MASTER_ADDR': os.environ.get('MASTER_ADDR', '127.0.0.1') if nodes > 1 else '127.0.0.1',
            'MASTER_PORT': choose_port(nodes, node),
            'TORCHELASTIC_RUN_ID': 'none',  # shows that a launcher has started the process
        }
        if nodes * number > 1:
            # torch's default is all cores for each process. mmengine would set 1, with a warning
            for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
                environment.setdefault(name, str(max(1, usable_cores() // number)))
            # NCCL is silent about the cause of an error by default
            environment.setdefault('NCCL_DEBUG', 'WARN')
            # no stack traces of torch's connections that end because a process has failed
            environment.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
        for rank in range(number):
            ranks = {'RANK': str(self._first_rank + rank), 'LOCAL_RANK': str(rank)}
            # a new session: Ctrl-C reaches the processes once, from this launcher
            self._processes.append(
                subprocess.Popen(command, env=environment | ranks, start_new_session=True)
            )
        for signum in self._received:  # while processes were being started
            self._send(signum)

    def forward(self, signum: int, frame: object) -> None:
        """Pass a signal on to the processes."""
        self._received.append(signum)
        self._deadline = self._deadline or time.monotonic() + TIME_TO_SAVE
        self._send(signum)

    def wait(self) -> int:
        """Wait until all processes have ended. Return the exit code of the launcher."""
        while len(self._codes) < len(self._processes):
            for rank, process in enumerate(self._processes):
                code = process.poll()
                if code is not None and rank not in self._codes:
                    self._note(rank, code)
            self._end_others()
            if self._deadline and time.monotonic() > self._deadline:
                self._send(signal.SIGKILL)
            time.sleep(0.05)
        self._report()
        failures = [code for code in self._codes.values() if code]
        # a saved checkpoint does not hide the failure of another process
        code = next((code for code in failures if code != SAVED), SAVED if failures else 0)
        return code if code >= 0 else 128 - code

    def _note(self, rank: int, code: int) -> None:
        self._codes[rank] = code
        if code < 0 and not self._deadline:
            self._crashed[self._first_rank + rank] = -code
        if code == SAVED and not self._deadline:  # the other processes are saving as well
            self._deadline = time.monotonic() + TIME_TO_SAVE
        elif code and self._failed_at is None:
            wait = TIME_TO_ABORT if code == -signal.SIGABRT else 0
            self._failed_at = time.monotonic() + wait

    def _end_others(self) -> None:
        """End the other processes of one that has failed."""
        if self._deadline or self._failed_at is None or time.monotonic() < self._failed_at:
            return
        ranks = range(len(self._processes))
        self._running = [self._first_rank + rank for rank in ranks if rank not in self._codes]
        self._deadline = time.monotonic() + TIME_TO_END
        self._send(signal.SIGTERM)

    def _send(self, signum: int) -> None:
        for process in self._processes:
            process.send_signal(signum)  # does nothing if the process has ended

    def _report(self) -> None:
        """Print the failure of a process that could not do so itself."""
        for rank, number in self._crashed.items():
            cause = CAUSES.get(number, OTHER_CAUSE)
            if number == signal.SIGABRT and self._running:
                # those that waited abort first, the one that they waited for has not begun to wait
                cause += f'. Still running then: {", ".join(map(str, self._running))}'
            fail(f'process {rank} was killed by {signal.Signals(number).name}: {cause}')
            return
        if signal.SIGTERM in self._received and -signal.SIGTERM in self._codes.values():
            sys.stderr.write('\nstopped by SIGTERM\n')
            return
        for rank, code in self._codes.items():
            if code:
                if code > 0 and code not in REPORTED:
                    fail(f'process {self._first_rank + rank} ended with exit code {code}')
                return


def choose_port(nodes: int, node: int) -> str:
    """Return PORT, or a free port for the processes of a single node."""
    port = os.environ.get('PORT')
    if not port and nodes == 1:
        # Below 32768, the first port that Linux uses for outgoing connections: the port has to stay
        # free until the first process listens on it.
        return str(next(p for p in random.sample(range(20000, 32768), 12768) if is_free(p)))
    port = port or '29500'
    if node == 0 and not is_free(int(port)):
        fail(f'port {port} is in use: set PORT to a free one')
        sys.exit(1)
    return port


def is_free(port: int) -> bool:
    """Return whether a process of this node can listen on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', port))
        except OSError:
            return False
    return True


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    number = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count() or 1
    try:  # of a container
        with open('/sys/fs/cgroup/cpu.max') as file:
            quota, period = file.read().split()
        return min(number, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or 'max'
        return number


def fail(message: str) -> None:
    """Print an error."""
    sys.stderr.write(f'error: {message}\n')


if __name__ == '__main__':
    sys.exit(main())
