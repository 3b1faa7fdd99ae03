from .average_batch_norm import AverageBatchNorm
from .bad_loss import BadLossHook
from .checkpoint import SafeCheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .early_stopping import ResumableEarlyStoppingHook
from .exact_resume import ExactResumeHook
from .failed_step import record_failed_step
from .resumed_settings import ResumedSettingsHook
from .stop_on_sigterm import StopOnSigtermHook
from .unused_parameters import UnusedParametersHook

__all__ = [
    'AverageBatchNorm',
    'BadLossHook',
    'CheckpointFitHook',
    'ExactResumeHook',
    'ResumableEarlyStoppingHook',
    'ResumedSettingsHook',
    'SafeCheckpointHook',
    'StopOnSigtermHook',
    'UnusedParametersHook',
    'record_failed_step',
]
