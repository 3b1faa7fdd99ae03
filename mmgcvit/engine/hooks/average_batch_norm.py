"""BatchNorm of several processes that cannot share their batches' statistics."""

from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from ...registry import HOOKS


@HOOKS.register_module()
class AverageBatchNorm(Hook):
    """Averages BatchNorm's running statistics over all processes after each iteration.

    Where BN stands in for SyncBN every process would keep statistics of its own: validation would
    run a different network in each, and a checkpoint hold the first one's.
    """

    priority = 'HIGH'  # before the weights are averaged over time, validated or saved

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
