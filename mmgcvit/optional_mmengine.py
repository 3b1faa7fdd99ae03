"""Parts of mmengine that the backbone and its weights use, or plain replacements without mmengine.

Without mmengine, :class:`mmgcvit.GCViT` is a plain ``nn.Module``. Its ``init_cfg`` can load weights
(``type='Pretrained'``) and nothing else. Configs, trainings and the tools need mmengine.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import UserError

try:
    from mmengine.logging import HistoryBuffer, print_log
    from mmengine.model import BaseModule, PretrainedInit, initialize
    from mmengine.registry import WEIGHT_INITIALIZERS

    from .registry import MODELS, class_of
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise

    @dataclass
    class HistoryBuffer:
        """The values of a history of losses in a checkpoint of mmengine."""

        log_history: Sequence[float]
        count_history: Sequence[float]
        max_length: int

    class BaseModule(nn.Module):
        """Module with an initialization config."""

        def __init__(self, init_cfg: Mapping | Sequence[Mapping] | None = None) -> None:
            super().__init__()
            self.init_cfg = copy.deepcopy(init_cfg)
            self.is_init = False

        def init_weights(self) -> None:
            if self.init_cfg and not self.is_init:
                configs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg
                initialize(self, configs)
            self.is_init = True

    class MODELS:
        """Replacement for the registry, which is only used by configs."""

        @staticmethod
        def register_module() -> Callable[[type], type]:
            return lambda module: module

    # no Sequence[Mapping]: the reader of docstrings (griffe) cannot resolve it under this name
    def initialize(module: nn.Module, init_cfg: Sequence) -> None:
        """Reject initialization configs other than those of pretrained weights."""
        if init_cfg:
            raise UserError(
                f'init_cfg={init_cfg[0]!r} needs mmengine, which is not installed: run `pip '
                "install mmengine`, or use only type='Pretrained'"
            )

    def is_pretrained(init_cfg: Mapping) -> bool:
        """Whether an initialization config loads pretrained weights."""
        return init_cfg.get('type') == 'Pretrained'

    def print_log(message: Any, logger: str) -> None:
        """Log a message."""
        logging.getLogger('mmgcvit').info(message)

else:

    def is_pretrained(init_cfg: Mapping) -> bool:
        """Whether an initialization config loads pretrained weights."""
        return class_of(init_cfg, WEIGHT_INITIALIZERS) is PretrainedInit


__all__ = ['MODELS', 'BaseModule', 'HistoryBuffer', 'initialize', 'is_pretrained', 'print_log']
