"""Connection of the processes that ``tools/dist_*.sh`` and ``tools/slurm_*.sh`` start."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import MutableMapping
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed.constants import default_pg_timeout

from ..errors import UserError, one_line
from .exchange import LATE, Exchange, say_on_node
from .health import compare_processes

PR_SET_PDEATHSIG = 1  # option of prctl on Linux
TORCH_SETTINGS = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def process_rank() -> int:
    """Return the rank that the launcher has given to this process, even before it is connected."""
    return int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0)


def start_processes(cfg: Config, device: str) -> int:
    """Connect this process to the others of its run: with NCCL on CUDA, with gloo on a CPU.

    mmengine's Runner can do this only on a GPU. It uses an existing process group. The processes
    compare their versions, configs and GPUs before they use the connection.

    Args:
        cfg: Config whose ``launcher`` is 'pytorch' (torchrun), 'slurm', or 'none' for one process.
            Slurm's environment variables are translated to torchrun's.
        device: 'cuda' or 'cpu'.

    Returns:
        Number of processes.

    Raises:
        UserError: If the launcher did not start the processes, there are more processes than GPUs,
            they cannot connect, or they differ.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        if 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE', '1') != '1':
            raise UserError(
                f'torchrun started {os.environ["WORLD_SIZE"]} processes, and each would '
                'run independently in the same work dir: add --launcher pytorch, or use '
                'tools/dist_train.sh'
            )
        return 1
    env_cfg = cfg.get('env_cfg', {})
    dist_cfg = dict(env_cfg.get('dist_cfg', {}))
    port = dist_cfg.pop('port', None)  # mmengine reads it only under Slurm
    if torch.distributed.is_initialized():  # by a script that calls build_runner
        return torch.distributed.get_world_size()
    if launcher == 'slurm':
        if port is not None:
            os.environ['MASTER_PORT'] = str(port)
        translate_slurm(os.environ)
    missing = [name for name in TORCH_SETTINGS if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher pytorch needs the environment variables {", ".join(missing)}: start the '
            'processes with tools/dist_train.sh, tools/dist_test.sh or torchrun'
        )
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        end_with_parent()
    if device == 'cuda':
        check_gpu(int(os.environ['LOCAL_RANK']), torch.cuda.device_count())
    # Runner also does this first: init_dist would select a different start method for workers.
    set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
    _connect(cfg, device, dist_cfg)
    return torch.distributed.get_world_size()


def end_processes() -> None:
    """Wait for the other processes of the run, then disconnect from them."""
    # together: under Slurm, the first process hosts the store that connects the others
    torch.distributed.barrier()
    gloo = None
    if torch.distributed.get_backend() == 'gloo':
        # gloo's destructor waits for its threads, which may need the GIL to free tensors. Without
        # this reference, which releases the GIL, torch 2.1 sometimes waits forever.
        gloo = torch.distributed.group.WORLD._get_backend(torch.device('cpu'))
    torch.distributed.destroy_process_group()
    del gloo
    Exchange.current = None
    if process_rank() == 0:
        # mmengine collects the results of metrics there and leaves the folder
        with contextlib.suppress(OSError):  # not empty while another run uses it
            os.rmdir('.dist_test')


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have Linux send a signal to this process when its parent ends, even if that is killed.

    Without this, a process that torchrun starts in a separate session would keep running, and would
    write checkpoints next to the checkpoints of a resumed run.

    Args:
        number: The signal. A training that receives SIGTERM saves a checkpoint first.
    """
    if sys.platform != 'linux':
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent was killed in the meantime
        os.kill(os.getpid(), number)


def check_gpu(local_rank: int, gpus: int) -> None:
    """Raise a UserError if the node has no GPU for this process."""
    if local_rank >= gpus:
        raise UserError(
            f'local rank {local_rank} has no GPU: this node has {gpus}. Start at most {gpus} '
            'processes per node, or check CUDA_VISIBLE_DEVICES and nvidia-smi'
        )


def translate_slurm(environment: MutableMapping[str, str]) -> None:
    """Set torch's environment variables (``RANK``, ``MASTER_ADDR``, …) from Slurm's.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are kept if they are set. They default to the first node of
    the job and to a port computed from the job and step ids, so that jobs on the same node use
    different ports.

    Raises:
        UserError: If one of Slurm's variables is missing, or the first node cannot be determined.
    """
    needed = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_JOB_ID', 'SLURM_NODELIST')
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(
            f'--launcher slurm needs the environment variables {", ".join(missing)}: start the '
            'processes with tools/slurm_train.sh, tools/slurm_test.sh or srun'
        )
    environment['RANK'] = environment['SLURM_PROCID']
    environment['WORLD_SIZE'] = environment['SLURM_NTASKS']
    environment['LOCAL_RANK'] = environment['SLURM_LOCALID']
    if 'MASTER_ADDR' not in environment:
        environment['MASTER_ADDR'] = _first_node(environment['SLURM_NODELIST'])
    job = int(environment['SLURM_JOB_ID']) + int(environment.get('SLURM_STEP_ID', 0))
    # below 32768, the first port that Linux uses for outgoing connections
    environment.setdefault('MASTER_PORT', str(20000 + job % 10000))


def _first_node(nodes: str) -> str:
    """Return the first node of a list such as ``node[07-08,11]``."""
    try:
        found = subprocess.run(
            ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f'scontrol cannot expand the nodes {nodes} ({error}): set MASTER_ADDR to the address '
            'of the first one'
        ) from error
    return found.stdout.split()[0]


def _connect(cfg: Config, device: str, dist_cfg: dict) -> None:
    seconds = dist_cfg.get('timeout', default_pg_timeout.total_seconds())
    address = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    try:
        if 'init_backend' in dist_cfg:  # of a library that connects the processes itself
            init_dist('pytorch', **dist_cfg)
            return
        store, rank, size = _open_store(seconds)
        exchange = Exchange.current = Exchange(store, rank, size, seconds)
        exchange.introduce(socket.gethostname())
        if device == 'cuda':
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        compare_processes(exchange, cfg, device)
        shared = {'store': store, 'rank': rank, 'world_size': size}
        if device == 'cuda':
            init_dist('pytorch', **shared, **dist_cfg)
        else:
            # not init_dist, which selects a GPU for every backend
            limit = timedelta(seconds=seconds)
            torch.distributed.init_process_group('gloo', timeout=limit, **shared)
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f'process {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} cannot connect to the '
            f'other processes at {address} ({one_line(error)}): the port may be in use, the '
            'address may be wrong, or node 0 may not have started: set PORT (MASTER_PORT under '
            'Slurm) and MASTER_ADDR'
        ) from error


def _open_store(seconds: float) -> tuple[torch.distributed.Store, int, int]:
    """Return the store that connects all processes, the rank and the number of processes.

    torch waits in this place for all processes, and does not know which ones are missing.
    """
    limit = timedelta(seconds=seconds)
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':  # torchrun has opened it
        return next(torch.distributed.rendezvous('env://', timeout=limit))
    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    rank, size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    if rank:
        _await_listener(host, port, seconds)
    store = torch.distributed.TCPStore(
        host if rank else '127.0.0.1',  # MASTER_ADDR may be wrong: the others then report it
        port,
        is_master=rank == 0,
        timeout=limit,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return store, rank, size


def _await_listener(host: str, port: int, seconds: float) -> None:
    """Wait until the first process listens. torch would write a stack trace for every attempt.

    Raises:
        OSError: If it does not within the given time.
    """
    start, is_silent = time.monotonic(), True
    while True:
        try:
            socket.create_connection((host, port), timeout=min(seconds, LATE)).close()
            return
        except OSError as error:
            waited = time.monotonic() - start
            if waited >= seconds:
                raise
            if is_silent and waited > LATE:
                is_silent = False
                say_on_node(f'waiting for process 0 at {host}:{port} ({one_line(error)})')
        time.sleep(0.05)
