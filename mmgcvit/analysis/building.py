"""Building the model of a config, to be counted or timed."""

import copy

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from ..engine.resume import forget_pretrained
from ..registry import set_default_scope


def build_untrained(cfg: Config) -> nn.Module:
    """Build a config's model like the Runner, but without its pretrained weights."""
    set_default_scope(cfg.get('default_scope', 'mmengine'))
    model_cfg = copy.deepcopy(cfg.model)  # some models change their config
    if cfg.get('data_preprocessor'):  # mmpretrain's configs have it at the top level
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    forget_pretrained(model)
    return model
