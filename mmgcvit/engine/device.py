"""Where a model runs, and what has to differ on a machine without CUDA."""

import os
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import utils
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..mmcv_ops import operator_failure, require_operators

SYNC_BN = ('SyncBN', 'MMSyncBN')


def choose_device() -> str:
    """Choose the device of this process, such as 'cuda' or 'cpu', for mmengine too.

    A GPU that mmcv's operators do not run on is not used.

    Raises:
        UserError: If mmcv is missing or broken.
        UserError: If the GPU does not work.
    """
    require_operators()
    if utils.DEVICE != 'cpu' and _gpu_failure():
        # what mmengine.device.get_device() returns from now on; it has no setter
        utils.DEVICE = 'cpu'
    return utils.DEVICE


def _gpu_failure() -> str | None:
    """Return why mmcv's operators do not run on the GPU of this process, or None."""
    device = utils.DEVICE
    if torch.cuda.is_available():
        rank = os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0'))
        device = f'cuda:{int(rank) % torch.cuda.device_count()}'
    try:
        return operator_failure(device, torch.float32)
    except RuntimeError as error:
        reason = ' '.join(str(error).split())[:300]
        raise UserError(
            f'{device} does not work ({reason}): see what runs on it (nvidia-smi), choose another '
            'GPU by CUDA_VISIBLE_DEVICES, or set that to -1 to use the CPU'
        ) from error


def fit_to_cpu(cfg: Config, processes: int) -> None:
    """Replace what a config asks for and a CPU lacks, and say so in one line of the first process.

    SyncBN becomes BN, whose running statistics are averaged over the processes; evaluation in half
    precision becomes evaluation in float32; and several processes get no GPU of their own.

    Args:
        cfg: Config of a Runner.
        processes: Number of processes that train or test together, connected by gloo.
    """
    told = ['running on the CPU']
    if torch.cuda.is_available():
        remedy = 'install torchvision for CUDA, from where torch came'
        if require_operators().compiled:
            remedy = 'replace mmcv by mmcv-lite to use those of torchvision'
        told = [
            "running on the CPU, though there is a GPU: mmcv's operators do not run on it "
            f'({_gpu_failure()}); {remedy}'
        ]
    if cfg.get('launcher', 'none') != 'none':
        told.append(f'{processes} process{"es" * (processes > 1)} connected by gloo')
        # DDP groups gradients anew after its first step, unless it looks for unused parameters. A
        # sum over three and more processes depends on the groups, and a resumed training has a
        # first step of its own.
        wrapper = cfg.get('model_wrapper_cfg') or dict(
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', processes > 2),
        )
        kind = wrapper.setdefault('type', 'MMDistributedDataParallel')
        if isinstance(kind, str):
            kind = MODEL_WRAPPERS.get(kind)
        if issubclass(kind, DistributedDataParallel):
            wrapper['device_ids'] = None  # the Runner would give it a GPU
        cfg.model_wrapper_cfg = wrapper
    if _replace_sync_bn(cfg.get('model')) | (cfg.pop('sync_bn', None) is not None):
        told.append('SyncBN replaced by BN')
        if processes > 1:
            hooks = cfg.get('custom_hooks') or []
            cfg.custom_hooks = [*hooks, dict(type='mmgcvit.AverageBatchNorm')]
    for name in ('val_cfg', 'test_cfg'):
        if (cfg.get(name) or {}).pop('fp16', False):
            told.append(f'{name} without fp16')
    if is_main_process():
        print_log(', '.join(told), logger='current')


def _replace_sync_bn(node: Any) -> bool:
    """Make every SyncBN of a model's config BN and tell whether there was any."""
    if isinstance(node, list | tuple):
        return any([_replace_sync_bn(part) for part in node])
    if not isinstance(node, dict):
        return False
    found = node.get('type') in SYNC_BN
    if found:
        node['type'] = 'BN'
    # a list, for any() to visit every part
    return any([found, *(_replace_sync_bn(part) for part in node.values())])
