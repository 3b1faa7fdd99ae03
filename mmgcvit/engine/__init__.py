from .amp import BFloat16OptimWrapper, request_amp
from .bad_loss import BadLossHook
from .batch_norm import AverageBatchNorm
from .check_data import check_data, require_data
from .checkpoint_fit import CheckpointFitHook
from .checkpoints import SafeCheckpointHook
from .config import check_checkpoint, enable_lr_scaling, load_config
from .evaluation import DumpLabelMaps, dump_predictions, merge_views
from .fsdp import wrap_blocks
from .resume import find_checkpoint
from .runner import build_runner
from .segments import ExactResumeHook
from .tool import ToolError, config_parser, run_tool, runner_parser

__all__ = [
    'AverageBatchNorm',
    'BFloat16OptimWrapper',
    'BadLossHook',
    'CheckpointFitHook',
    'DumpLabelMaps',
    'ExactResumeHook',
    'SafeCheckpointHook',
    'ToolError',
    'build_runner',
    'check_checkpoint',
    'check_data',
    'config_parser',
    'dump_predictions',
    'enable_lr_scaling',
    'find_checkpoint',
    'load_config',
    'merge_views',
    'request_amp',
    'require_data',
    'run_tool',
    'runner_parser',
    'wrap_blocks',
]
