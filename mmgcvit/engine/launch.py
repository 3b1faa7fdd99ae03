"""Connecting the processes that ``tools/dist_*.sh`` and ``tools/slurm_*.sh`` start."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import MutableMapping
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing

from ..errors import UserError

PR_SET_PDEATHSIG = 1  # of Linux's prctl
TORCH_SETTINGS = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def start_processes(cfg: Config, device: str) -> int:
    """Connect this process with the others of its training, by nccl on CUDA and by gloo without.

    mmengine's Runner would do so by itself, but only on a GPU; it leaves a group alone that it
    finds. Nothing is done for a config whose ``launcher`` is 'none' or missing.

    Args:
        cfg: Config with ``launcher`` 'none', 'pytorch' (torchrun) or 'slurm'; 'slurm' becomes
            'pytorch', as its settings are translated.
        device: 'cuda' or 'cpu'.

    Returns:
        Number of processes.

    Raises:
        UserError: The processes were not started as the launcher says, there are more than GPUs,
            or they cannot be connected.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        if 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE', '1') != '1':
            raise UserError(
                f'torchrun started {os.environ["WORLD_SIZE"]} processes, and each would run alone '
                'in the same work dir: add --launcher pytorch, or use tools/dist_train.sh'
            )
        return 1
    env_cfg = cfg.get('env_cfg', {})
    dist_cfg = dict(env_cfg.get('dist_cfg', {}))
    port = dist_cfg.pop('port', None)  # mmengine takes it under Slurm alone
    if torch.distributed.is_initialized():  # by a script that builds its Runner with ours
        return torch.distributed.get_world_size()
    if launcher == 'slurm':
        if port is not None:
            os.environ['MASTER_PORT'] = str(port)
        translate_slurm(os.environ)
    missing = [name for name in TORCH_SETTINGS if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher pytorch, but {", ".join(missing)} missing in the environment: start the '
            'processes with tools/dist_train.sh, tools/dist_test.sh or torchrun'
        )
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        _end_with_parent()
    if device == 'cuda':
        check_gpu(int(os.environ['LOCAL_RANK']), torch.cuda.device_count())
    # As the Runner does first: init_dist would settle on another way to start workers otherwise.
    set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
    _connect(device, dist_cfg)
    return torch.distributed.get_world_size()


def _end_with_parent() -> None:
    """Have Linux kill this process when torchrun is killed, which starts it in its own session.

    It would go on otherwise, and write checkpoints beside those of the training that resumes.
    """
    if sys.platform != 'linux':
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed meanwhile
        os.kill(os.getpid(), signal.SIGKILL)


def check_gpu(local_rank: int, gpus: int) -> None:
    """Refuse a process that would have no GPU of its own."""
    if local_rank >= gpus:
        raise UserError(
            f'process {local_rank + 1} of this node has no GPU, there are {gpus}: give a GPU '
            f'count of at most {gpus}, or look at CUDA_VISIBLE_DEVICES and nvidia-smi'
        )


def translate_slurm(environment: MutableMapping[str, str]) -> None:
    """Set what torch reads (``RANK``, ``MASTER_ADDR``, ...) from what Slurm sets for each task.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are kept if set; otherwise the first node of the job and a
    port that follows from the job's and the step's number, so that jobs on one node differ.
    """
    needed = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_JOB_ID', 'SLURM_NODELIST')
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(
            f'--launcher slurm, but {", ".join(missing)} missing in the environment: start the '
            'processes with tools/slurm_train.sh, tools/slurm_test.sh or srun'
        )
    environment['RANK'] = environment['SLURM_PROCID']
    environment['WORLD_SIZE'] = environment['SLURM_NTASKS']
    environment['LOCAL_RANK'] = environment['SLURM_LOCALID']
    if 'MASTER_ADDR' not in environment:
        environment['MASTER_ADDR'] = _first_node(environment['SLURM_NODELIST'])
    job = int(environment['SLURM_JOB_ID']) + int(environment.get('SLURM_STEP_ID', 0))
    # below 32768, where Linux begins to give ports to outgoing connections
    environment.setdefault('MASTER_PORT', str(20000 + job % 10000))


def _first_node(nodes: str) -> str:
    """Return the first name of a list such as ``node[07-08,11]``."""
    try:
        found = subprocess.run(
            ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f'scontrol does not tell the first of the nodes {nodes} ({error}): set MASTER_ADDR to '
            'its address'
        ) from error
    return found.stdout.split()[0]


def _connect(device: str, dist_cfg: dict) -> None:
    try:
        if device == 'cuda':
            init_dist('pytorch', **dist_cfg)
        elif 'timeout' in dist_cfg:
            # not init_dist, which selects a GPU whatever the backend
            limit = timedelta(seconds=dist_cfg['timeout'])
            torch.distributed.init_process_group('gloo', timeout=limit)
        else:
            torch.distributed.init_process_group('gloo')
    except (RuntimeError, ValueError) as error:
        address = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        reason = str(error).strip().partition('\n')[0]
        raise UserError(
            f'process {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} cannot be connected with '
            f'the others at {address} ({reason}): is the port in use, or the address wrong? Set '
            'PORT (under Slurm MASTER_PORT) and MASTER_ADDR'
        ) from error
