from .average_batch_norm import AverageBatchNorm
from .bad_loss import BadLossHook
from .checkpoint import SafeCheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .exact_resume import ExactResumeHook
from .failed_step import record_failed_step

__all__ = [
    'AverageBatchNorm',
    'BadLossHook',
    'CheckpointFitHook',
    'ExactResumeHook',
    'SafeCheckpointHook',
    'record_failed_step',
]
