"""mmengine's runners, made ready for this machine."""

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ..mmcv_ops import require_operators
from ..weights import register_checkpoint_loaders
from .device import choose_device, fit_to_cpu
from .fsdp import settle_fsdp
from .guards import add_guards
from .hooks.checkpoint import register_file_backend
from .launch import start_processes
from .optimizers.mixed_precision import settle_amp
from .resume import forget_pretrained, with_exact_resume


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build the runner of a config; checkpoints are then read without executing them.

    That is mmengine's Runner or what the config has as ``runner_type``. It runs on a CUDA GPU where
    there is one, else on the CPU; the processes of ``cfg.launcher`` are connected. Trainings are
    resumed exactly, and a kill leaves a whole checkpoint: see the modules segments and checkpoints.
    ``cfg.resume`` may be 'auto' or a checkpoint, see :func:`with_exact_resume`.
    """
    device = choose_device()
    processes = start_processes(cfg, device)
    if is_main_process():
        print_log(f"mmcv's operators: {require_operators()}", logger='current')
    settle_amp(cfg, device)
    settle_fsdp(cfg, device)
    if device == 'cpu':
        fit_to_cpu(cfg, processes)
    register_checkpoint_loaders()
    register_file_backend()
    add_guards(cfg)
    cfg = with_exact_resume(cfg)
    runner = RUNNERS.build(cfg)
    if cfg.get('resume'):
        if isinstance(runner, FlexibleRunner):  # which would build it when the training begins
            runner.model = MODELS.build(runner.model)
        forget_pretrained(runner.model)
    return runner
