"""mmengine's runners, adapted to this machine."""

import copy

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ..mmcv_ops import require_operators
from ..registry import class_of
from ..weights import register_checkpoint_loaders
from .adaptations import ADAPTATIONS, Adaptation
from .config import require_kinds, require_parts, require_work_dir
from .device import Machine, choose_device
from .hooks.checkpoint import register_file_backend
from .launch import start_processes
from .resume import forget_pretrained
from .screen import with_short_screen
from .workers import require_short_temporary_folder


def build_runner(cfg: Config, *options: Adaptation) -> Runner | FlexibleRunner:
    """Build the runner of a config: mmengine's Runner, or the class that ``runner_type`` names.

    It runs on a CUDA GPU if there is one, otherwise on the CPU, and connects the processes of
    ``cfg.launcher``. From then on, this process reads checkpoints without executing code and writes
    local files atomically.

    Args:
        cfg: Config for training or testing. It is not changed. ``cfg.resume`` may be a checkpoint
            or 'auto', see :func:`~mmgcvit.engine.adaptations.adapt_resume`.
        *options: Additional adaptations, such as ``adapt_amp``. They run first.

    Raises:
        UserError: If the user has to fix the config, the environment or a checkpoint.
    """
    require_kinds(cfg)
    require_work_dir(cfg)
    cfg = copy.deepcopy(cfg)
    device = choose_device()
    machine = Machine(device, start_processes(cfg, device))
    if is_main_process():
        print_log(f"mmcv's operators: {require_operators()}", logger='current')
    for adapt in (*options, *ADAPTATIONS):
        adapt(cfg, machine)
    require_parts(cfg)
    require_short_temporary_folder()
    register_checkpoint_loaders()
    register_file_backend()
    cls = class_of(cfg.get('runner_type', 'Runner'), RUNNERS)
    # if there is no such class, mmengine raises
    runner = with_short_screen(cls).from_cfg(cfg) if cls else RUNNERS.build(cfg)
    if cfg.get('resume'):
        if isinstance(runner, FlexibleRunner):  # builds the model when training begins
            runner.model = MODELS.build(runner.model)
        forget_pretrained(runner.model)
    return runner
