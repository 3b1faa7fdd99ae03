"""The device that models run on."""

import os
from dataclasses import dataclass

import torch
from mmengine.device import utils

from ..errors import UserError, one_line
from ..mmcv_ops import operator_failure, require_operators


@dataclass(frozen=True)
class Machine:
    """Device and processes of a training or test run.

    Attributes:
        device: Type of this process's device, such as 'cuda' or 'cpu'.
        processes: Number of connected processes.
    """

    device: str
    processes: int = 1


def choose_device() -> str:
    """Return the type of this process's device, such as 'cuda' or 'cpu', and set it for mmengine.

    A GPU on which mmcv's operators do not run is not used.

    Raises:
        UserError: If mmcv is missing or broken, or the GPU does not work.
    """
    require_operators()
    if utils.DEVICE != 'cpu' and gpu_failure():
        # mmengine.device.get_device() returns this, and has no setter
        utils.DEVICE = 'cpu'
    return utils.DEVICE


def gpu_failure() -> str | None:
    """Return why mmcv's operators do not run on this process's GPU, or None if they do.

    Raises:
        UserError: If the GPU does not work.
    """
    device = utils.DEVICE
    if torch.cuda.is_available():
        rank = os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0'))
        device = f'cuda:{int(rank) % torch.cuda.device_count()}'
    try:
        return operator_failure(device, torch.float32)
    except RuntimeError as error:
        raise UserError(
            f'{device} does not work ({one_line(error)}): check what runs on it (nvidia-smi), '
            'select another GPU with CUDA_VISIBLE_DEVICES, or set CUDA_VISIBLE_DEVICES=-1 to use '
            'the CPU'
        ) from error


def require_device(device: str) -> str:
    """Return the device of ``--device``, such as 'cpu' or 'cuda:1'.

    Raises:
        UserError: If it does not work, or mmcv is missing or broken.
    """
    require_operators()
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter if torch is built without CUDA
        raise UserError(
            f'--device {device} does not work ({one_line(error)}): pass cpu, cuda or cuda:N'
        ) from error
    return device
