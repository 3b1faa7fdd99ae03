"""Parameters without a gradient are named after the first update."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from nano import NANO
from torch import nn
from toy import ToyModel, toy_config

from mmgcvit import GCViT
from mmgcvit.engine import UnusedParametersHook, build_runner
from mmgcvit.engine.hooks.unused_parameters import remedy


@MODELS.register_module(force=True)
class Forgetful(ToyModel):
    """Does not use one layer, and uses another one in every second batch."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.forgotten = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.sometimes = nn.Parameter(torch.zeros(()))
        self.batches = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        found = super().forward(inputs, data_samples, mode)
        self.batches += 1
        if mode == 'loss' and self.batches % 2 == 0:
            found['loss_rare'] = self.sometimes * 0
        return found


def observed(tmp_path, accumulated=1, **settings):
    cfg = toy_config(tmp_path, iterations=4, **settings)
    cfg.optim_wrapper.accumulative_counts = accumulated
    runner = build_runner(cfg)
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, UnusedParametersHook))
    return hook


def test_unused_parameters_are_a_warning_in_one_process(tmp_path, log):
    hook = observed(tmp_path, model=dict(type='Forgetful'))
    assert hook.checked
    assert hook.unused == ['sometimes', 'forgotten.weight', 'forgotten.bias']
    (line,) = (line for line in log if 'get no gradient' in line)
    assert line.startswith('3 parameters get no gradient (sometimes, forgotten.weight, ')
    assert line.endswith('or freeze them (requires_grad=False)')


def test_an_update_may_have_several_batches(tmp_path):
    hook = observed(tmp_path, model=dict(type='Forgetful'), accumulated=2)
    assert hook.unused == ['forgotten.weight', 'forgotten.bias']


def test_models_without_unused_parameters_are_not_mentioned(tmp_path, log):
    hook = observed(tmp_path)
    assert hook.checked and not hook.unused
    assert not any('gradient' in line for line in log)


def test_nothing_is_observed_after_the_first_update(tmp_path):
    hook = observed(tmp_path, model=dict(type='Forgetful'))
    assert not hook._handles


def backbone(*out_indices):
    return GCViT(NANO, window_size=2, out_indices=out_indices)


def norms(*outputs):
    return [f'backbone.norm{i}.{name}' for i in outputs for name in ('weight', 'bias')]


@pytest.mark.parametrize(
    ('out_indices', 'neck', 'unused', 'settings'),
    [
        (
            (0, 1, 2, 3),
            dict(in_channels=[8, 16, 32, 64], start_level=1),
            [0],
            'out_indices=(1,2,3) model.neck.in_channels=[16,32,64] model.neck.start_level=0',
        ),
        (
            (0, 1, 3),
            dict(in_channels=[8, 16, 64], start_level=2),
            [0, 1],
            'out_indices=(3,) model.neck.in_channels=[64] model.neck.start_level=0',
        ),
        (
            (1, 2, 3),
            dict(in_channels=[16, 32, 64], end_level=1),
            [3],
            'out_indices=(1,2) model.neck.in_channels=[16,32]',
        ),
    ],
)
def test_remedy_for_outputs_that_the_neck_does_not_use(out_indices, neck, unused, settings):
    model = nn.ModuleDict({'backbone': backbone(*out_indices)})
    text = remedy(Config(dict(model=dict(neck=neck))), model, norms(*unused))
    number = ', '.join(map(str, unused))
    assert text == f'nothing uses output {number} of the backbone: set model.backbone.{settings}'


def test_remedy_for_outputs_that_heads_do_not_use():
    heads = dict(decode_head=dict(in_index=[2, 3]), auxiliary_head=[dict(in_index=2)])
    model = nn.ModuleDict({'backbone': backbone(0, 1, 2, 3)})
    text = remedy(Config(dict(model=heads)), model, norms(0, 1))
    assert text.endswith(
        'set model.backbone.out_indices=(2,3) model.decode_head.in_index=[0,1] '
        'model.auxiliary_head.0.in_index=0'
    )


def test_other_parameters_are_named_besides():
    model = nn.ModuleDict({'backbone': backbone(0, 1), 'extra': nn.Linear(1, 1)})
    neck = dict(in_channels=[8, 16], start_level=1)
    text = remedy(Config(dict(model=dict(neck=neck))), model, [*norms(0), 'extra.bias'])
    assert 'out_indices=(1,)' in text
    assert text.endswith(
        'remove the modules of extra.bias from the model, or freeze them (requires_grad=False)'
    )
