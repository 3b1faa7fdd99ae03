"""mmengine's runners, adapted to this machine."""

import copy

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ..mmcv_ops import require_operators
from ..weights import register_checkpoint_loaders
from .adaptations import ADAPTATIONS, Adaptation
from .device import Machine, choose_device
from .hooks.checkpoint import register_file_backend
from .launch import start_processes
from .resume import forget_pretrained


def build_runner(cfg: Config, *options: Adaptation) -> Runner | FlexibleRunner:
    """Build the runner of a config, mmengine's Runner or the one that ``runner_type`` names.

    It runs on a CUDA GPU if there is one, else on the CPU, and the processes of ``cfg.launcher``
    are connected. Checkpoints are read without executing code, and local files are written
    atomically; both hold for the whole process.

    Args:
        cfg: Config of a training or test; it is not changed. ``cfg.resume`` may be a checkpoint or
            'auto', see :func:`~mmgcvit.engine.adaptations.adapt_resume`.
        *options: Adaptations beyond those of every config, such as ``adapt_amp``.

    Raises:
        UserError: If the config, the environment or a checkpoint has to be corrected.
    """
    cfg = copy.deepcopy(cfg)
    device = choose_device()
    machine = Machine(device, start_processes(cfg, device))
    if is_main_process():
        print_log(f"mmcv's operators: {require_operators()}", logger='current')
    for adapt in (*options, *ADAPTATIONS):
        adapt(cfg, machine)
    register_checkpoint_loaders()
    register_file_backend()
    runner = RUNNERS.build(cfg)
    if cfg.get('resume'):
        if isinstance(runner, FlexibleRunner):  # it would build the model when the training begins
            runner.model = MODELS.build(runner.model)
        forget_pretrained(runner.model)
    return runner
