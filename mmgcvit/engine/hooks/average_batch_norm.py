"""BatchNorm in several processes, where SyncBN is not available."""

from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from ...registry import HOOKS


@HOOKS.register_module()
class AverageBatchNorm(Hook):
    """Average BatchNorm's running statistics over all processes after each iteration.

    When BN replaces SyncBN, each process has its own running statistics. Without this hook,
    processes would validate different networks, and checkpoints would only contain the statistics
    of rank 0.
    """

    priority = 'HIGH'  # before EMAHook, validation and CheckpointHook

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        norms = [m for m in runner.model.modules() if isinstance(m, _BatchNorm)]
        running = [(m.running_mean, m.running_var) for m in norms if m.running_mean is not None]
        all_reduce_params([value for pair in running for value in pair], op='mean')
