"""Checkpoints of a different network are rejected. Only load_from accepts different heads."""

import pytest
import torch
from mmengine.registry import MODELS
from toy import ToyModel, toy_config, toy_runner

from mmgcvit.engine import build_runner
from mmgcvit.errors import UserError


@pytest.fixture
def checkpoint(tmp_path):
    toy_runner(tmp_path / 'first', iterations=2).train()
    return str(tmp_path / 'first/iter_2.pth')


def test_resuming_needs_a_checkpoint_of_the_same_size(checkpoint, tmp_path):
    path = tmp_path / 'second'
    runner = toy_runner(path, model=dict(width=5), load_from=checkpoint, resume=True)
    message = (
        r'does not match the model: 3 tensors have mismatched shapes: backbone.weight has shape '
    )
    with pytest.raises(UserError, match=message + r'\(3, 2\), expected \(5, 2\)'):
        runner.train()
    same = toy_runner(path, iterations=3, load_from=checkpoint, resume=True)
    same.train()
    assert same.iter == 3


def test_resuming_needs_the_same_heads_too(checkpoint, tmp_path):
    settings = dict(model=dict(classes=7), load_from=checkpoint)
    with pytest.raises(UserError, match=r'2 tensors have mismatched shapes: bbox_head\.weight'):
        toy_runner(tmp_path / 'resumed', resume=True, **settings).train()


def test_load_from_accepts_different_heads_and_logs_them(checkpoint, tmp_path, log):
    runner = toy_runner(
        tmp_path / 'begun', iterations=0, model=dict(classes=7), load_from=checkpoint
    )
    runner.train()
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    assert torch.equal(runner.model.backbone.weight, saved['backbone.weight'])
    (line,) = [line for line in log if ': loaded ' in line]
    kept = '2 kept at initialization (2 with mismatched shape): bbox_head.weight, bbox_head.bias;'
    assert kept in line


def test_load_from_rejects_a_different_backbone(checkpoint, tmp_path):
    runner = toy_runner(tmp_path / 'begun', model=dict(width=5), load_from=checkpoint)
    with pytest.raises(UserError, match=r'2 tensors have mismatched shapes: backbone\.weight'):
        runner.train()


def test_a_file_of_a_different_network_is_rejected(tmp_path):
    path = tmp_path / 'else.pth'
    torch.save({'layer.weight': torch.ones(2)}, path)
    runner = toy_runner(tmp_path / 'begun', load_from=str(path))
    with pytest.raises(UserError, match=r'contains none of .* has names like layer\.weight'):
        runner.train()


@pytest.mark.parametrize('part', ['optimizer', 'param_schedulers', 'message_hub'])
def test_resuming_needs_the_complete_training_state(tmp_path, part):
    schedule = dict(param_scheduler=dict(type='LinearLR', start_factor=0.5, by_epoch=False))
    toy_runner(tmp_path, iterations=2, **schedule).train()
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    del saved[part]
    torch.save(saved, tmp_path / 'part.pth')
    settings = dict(resume=True, load_from=str(tmp_path / 'part.pth'), **schedule)
    with pytest.raises(UserError, match=rf'cannot resume from .*part\.pth: it lacks {part}\. '):
        toy_runner(tmp_path, **settings).train()
    begun = toy_runner(tmp_path, iterations=1, **{**settings, 'resume': False})
    begun.train()
    assert begun.iter == 1


def with_classes(folder, names, testing=False, **settings):
    """A runner whose dataset has these class names, which its checkpoints contain."""
    cfg = toy_config(folder, **settings)
    cfg.train_dataloader.dataset.classes = names
    if testing:
        cfg.test_dataloader, cfg.test_cfg = cfg.train_dataloader, {}
        cfg.test_evaluator = dict(type='DumpResults', out_file_path=str(folder / 'o.pkl'))
    return build_runner(cfg)


@pytest.mark.parametrize(
    ('names', 'moved'),
    [
        (('b', 'a'), "'b' is class 1 there and class 0 here"),
        (('c', 'a'), "'a' is class 0 there and class 1 here"),
    ],
)
@pytest.mark.parametrize('resume', [True, False])
def test_classes_in_another_order_are_refused(tmp_path, names, moved, resume):
    with_classes(tmp_path / 'first', ('a', 'b'), iterations=2).train()
    path = str(tmp_path / 'first/iter_2.pth')
    runner = with_classes(tmp_path / 'second', names, not resume, load_from=path, resume=resume)
    with pytest.raises(UserError, match=rf'{moved}\. Set metainfo'):
        runner.train() if resume else runner.test()


@pytest.mark.parametrize(('names', 'differ'), [(('a', 'b'), False), (('a', 'B'), True)])
def test_renamed_classes_are_reported(tmp_path, log, names, differ):
    with_classes(tmp_path / 'first', ('a', 'b'), iterations=2).train()
    path = str(tmp_path / 'first/iter_2.pth')
    log.clear()
    with_classes(tmp_path / 'second', names, testing=True, load_from=path).test()
    lines = [line for line in log if "class 1 is 'b' there and 'B' here" in line]
    assert len(lines) == differ


def test_training_from_a_checkpoint_may_have_other_classes(tmp_path):
    with_classes(tmp_path / 'first', ('a', 'b'), iterations=2).train()
    path = str(tmp_path / 'first/iter_2.pth')
    with_classes(tmp_path / 'second', ('b', 'a'), iterations=1, load_from=path).train()


def test_testing_needs_a_checkpoint_of_the_same_size(checkpoint, tmp_path):
    loader = dict(
        batch_size=1,
        dataset=dict(type='ToyDataset', length=2, bad=[]),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    runner = toy_runner(
        tmp_path / 'tested',
        model=dict(classes=7),
        load_from=checkpoint,
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=dict(type='DumpResults', out_file_path=str(tmp_path / 'o.pkl')),
    )
    with pytest.raises(UserError, match=r'2 tensors have mismatched shapes: bbox_head\.weight'):
        runner.test()


@MODELS.register_module(force=True)
class CompiledModel(ToyModel):
    """A model whose backbone is compiled after mmengine has initialized it."""

    def init_weights(self):
        super().init_weights()
        self.backbone = torch.compile(self.backbone, backend='eager')


@pytest.mark.parametrize(
    ('saved', 'new'), [('CompiledModel', 'ToyModel'), ('ToyModel', 'CompiledModel')]
)
def test_compiled_training_can_be_resumed_uncompiled_and_vice_versa(tmp_path, saved, new):
    first = toy_runner(tmp_path / 'first', iterations=2, model=dict(type=saved))
    first.train()
    path = str(tmp_path / 'first/iter_2.pth')
    state = torch.load(path, weights_only=False)['state_dict']
    assert ('backbone._orig_mod.weight' in state) == (saved == 'CompiledModel')
    resumed = toy_runner(
        tmp_path / 'second', iterations=2, model=dict(type=new), load_from=path, resume=True
    )
    resumed.train()
    assert resumed.iter == 2
    found = resumed.model.state_dict()
    assert ('backbone._orig_mod.weight' in found) == (new == 'CompiledModel')
    state = {name.replace('_orig_mod.', ''): tensor for name, tensor in state.items()}
    assert all(torch.equal(t, state[n.replace('_orig_mod.', '')]) for n, t in found.items())


@pytest.mark.parametrize('prefix', ['module.', 'model.', '_orig_mod.', 'net.module._orig_mod.'])
@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_load_from_accepts_checkpoints_of_other_programs(checkpoint, tmp_path, prefix, key):
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    state = {prefix + name: tensor for name, tensor in saved.items()}
    state['loss.weight'] = torch.rand(2)
    torch.save({key: state, 'epoch': 3} if key else state, tmp_path / 'other.pth')
    begun = toy_runner(
        tmp_path / 'begun',
        iterations=0,
        hooks=[dict(type='EMAHook')],
        load_from=str(tmp_path / 'other.pth'),
    )
    begun.train()
    assert all(torch.equal(t, saved[name]) for name, t in begun.model.state_dict().items())


def test_two_tensors_with_the_same_name_are_an_error(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    state |= {f'ema.{name}': tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / 'both.pth')
    runner = toy_runner(tmp_path / 'begun', load_from=str(tmp_path / 'both.pth'))
    with pytest.raises(UserError, match=r'two tensors for backbone\.weight, one of them ema\.'):
        runner.train()
