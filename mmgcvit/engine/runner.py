"""mmengine's Runner, made ready for this machine."""

from mmengine.config import Config
from mmengine.runner import Runner

from ..weights import register_checkpoint_loaders


def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a config; checkpoints are then read without executing them.

    mmengine trains on a CUDA GPU where there is one, else on the CPU.
    """
    register_checkpoint_loaders()
    return Runner.from_cfg(cfg)
