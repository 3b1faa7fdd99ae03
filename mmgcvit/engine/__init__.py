"""Building and running trainings, their hooks, and checks of configs and data."""

from .adaptations import adapt_amp, adapt_lr_scaling, adapt_test
from .check_data import check_data, require_data
from .config import check_checkpoint, load_config
from .fsdp import wrap_blocks
from .health import CompareData
from .hooks import (
    AverageBatchNorm,
    BadLossHook,
    CheckpointFitHook,
    ExactResumeHook,
    ResumableEarlyStoppingHook,
    ResumedSettingsHook,
    SafeCheckpointHook,
    StopOnSigtermHook,
    UnusedParametersHook,
    record_failed_step,
)
from .known_errors import known_error
from .optimizers import BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor
from .rehearsal import RehearseValidation, rehearse
from .resume import find_checkpoint
from .runner import build_runner
from .screen import name_failing_images
from .tool import config_parser, prepare_child, run_tool, runner_parser

__all__ = [
    'AverageBatchNorm',
    'BFloat16OptimWrapper',
    'BadLossHook',
    'CheckpointFitHook',
    'CompareData',
    'ExactResumeHook',
    'LayerDecayOptimWrapperConstructor',
    'RehearseValidation',
    'ResumableEarlyStoppingHook',
    'ResumedSettingsHook',
    'SafeCheckpointHook',
    'StopOnSigtermHook',
    'UnusedParametersHook',
    'adapt_amp',
    'adapt_lr_scaling',
    'adapt_test',
    'build_runner',
    'check_checkpoint',
    'check_data',
    'config_parser',
    'find_checkpoint',
    'known_error',
    'load_config',
    'name_failing_images',
    'prepare_child',
    'record_failed_step',
    'rehearse',
    'require_data',
    'run_tool',
    'runner_parser',
    'wrap_blocks',
]
