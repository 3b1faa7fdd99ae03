from .average_batch_norm import AverageBatchNorm
from .bad_loss import BadLossHook
from .checkpoint import SafeCheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .exact_resume import ExactResumeHook
from .unused_parameters import UnusedParametersHook

__all__ = [
    'AverageBatchNorm',
    'BadLossHook',
    'CheckpointFitHook',
    'ExactResumeHook',
    'SafeCheckpointHook',
    'UnusedParametersHook',
]
