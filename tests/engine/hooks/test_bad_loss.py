"""NaN losses: which images are named, what becomes of the weights, when and where it stops."""

import copy

import forks
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from toy import toy_config, toy_runner

from mmgcvit.engine import BadLossHook, build_runner
from mmgcvit.errors import UserError


def final(runner):
    return {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}


def test_three_bad_iterations_in_a_row_stop_and_change_nothing(tmp_path):
    runner = toy_runner(tmp_path, bad=[4, 5, 6])
    with pytest.raises(UserError, match=r'stopped at iteration 7.*images/6\.jpg \(id 106\)'):
        runner.train()
    saved = sorted(path.name for path in tmp_path.glob('iter_*.pth'))
    assert saved == [f'iter_{i}.pth' for i in range(1, 7)]
    good = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict']
    for name, tensor in torch.load(tmp_path / 'iter_6.pth', weights_only=False)[
        'state_dict'
    ].items():
        assert torch.equal(tensor, good[name]) and torch.isfinite(tensor).all(), name
    log = next(tmp_path.glob('*/*.log')).read_text()
    for number in (4, 5, 6):
        assert f'images/{number}.jpg (id {100 + number})' in log
        assert f'iteration {number + 1}: the loss is not finite' in log
        assert f' (bad iteration {number - 3} of 3 before training stops); images: ' in log
    assert 'images/3.jpg' not in log


def settings_after(runner):
    runner.train()
    group = runner.optim_wrapper.param_groups[0]
    return runner.iter, group['lr'], runner.optim_wrapper.clip_grad_kwargs


def test_the_remedies_of_the_message_work(tmp_path):
    """--resume works with corrected images and with clipping; a lower rate needs load_from."""
    with pytest.raises(UserError, match='because --resume keeps the learning rate of the'):
        toy_runner(tmp_path, bad=[4, 5, 6]).train()
    saved = str(tmp_path / 'iter_6.pth')
    assert settings_after(toy_runner(tmp_path, resume='auto')) == (8, 0.1, None)

    def changed(**options):
        cfg = toy_config(tmp_path / 'changed', **options)
        cfg.optim_wrapper.optimizer.lr = 0.01
        cfg.optim_wrapper.clip_grad = dict(max_norm=0.5)
        return build_runner(cfg)

    assert settings_after(changed(resume=saved)) == (8, 0.1, dict(max_norm=0.5))
    assert settings_after(changed(load_from=saved)) == (8, 0.01, dict(max_norm=0.5))


@pytest.mark.parametrize('wrapper', ['OptimWrapper', 'mmgcvit.BFloat16OptimWrapper'])
def test_a_training_with_a_loss_scaler_is_resumed_without_one(tmp_path, wrapper):
    toy_runner(tmp_path, iterations=2).train()
    path = tmp_path / 'iter_2.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['optimizer']['loss_scaler'] = dict(scale=2.0**-14, _growth_tracker=0)
    torch.save(checkpoint, path)
    cfg = toy_config(tmp_path, iterations=4, resume='auto')
    cfg.optim_wrapper.type = wrapper
    assert settings_after(build_runner(cfg)) == (4, 0.1, None)


def test_single_bad_iterations_are_left_out_and_training_goes_on(tmp_path):
    runner = toy_runner(tmp_path / 'bad', bad=[1, 2, 4, 6], iterations=8)
    start = copy.deepcopy(final(runner))
    runner.train()
    good = toy_runner(tmp_path / 'good', iterations=4)
    good.model.load_state_dict(start)
    good.train()
    for name, tensor in final(good).items():
        assert torch.equal(final(runner)[name], tensor), name


def test_bad_iterations_are_left_out_where_optimizers_call_no_hooks(tmp_path, monkeypatch):
    """torch.compile of PyTorch 2.1 removes the calls of hooks from all optimizers."""
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    without_hooks = torch.optim.AdamW.step.__wrapped__
    monkeypatch.setattr(without_hooks, 'hooked', True, raising=False)
    monkeypatch.setattr(torch.optim.AdamW, 'step', without_hooks)
    runner = toy_runner(tmp_path, bad=[1, 3], iterations=5)
    runner.train()
    assert all(tensor.isfinite().all() for tensor in final(runner).values())


def test_number_of_bad_iterations_is_set_in_the_config(tmp_path):
    hook = dict(type='mmgcvit.BadLossHook', max_consecutive=1)
    with pytest.raises(UserError, match='stopped at iteration 3'):
        toy_runner(tmp_path, bad=[2], hooks=[hook]).train()


@pytest.mark.parametrize('number', [0, True, 1.5])
def test_impossible_numbers_are_refused(number):
    with pytest.raises(ValueError, match='max_consecutive must be'):
        BadLossHook(number)


def test_training_stops_at_once_if_batch_norm_is_spoilt(tmp_path):
    runner = toy_runner(tmp_path, bad=[5], batch=2, model=dict(batch_norm=True))
    with pytest.raises(UserError, match=r'iteration 3.*contains values that are not finite'):
        runner.train()
    assert not (tmp_path / 'iter_3.pth').exists()


def test_accumulated_gradients_are_left_out_as_a_whole(tmp_path):
    cfg = toy_config(tmp_path, bad=[2], iterations=4)
    cfg.optim_wrapper.accumulative_counts = 2
    build_runner(cfg).train()
    two, four = (
        torch.load(tmp_path / f'iter_{i}.pth', weights_only=False)['state_dict'] for i in (2, 4)
    )
    assert all(torch.equal(two[name], four[name]) for name in two)


def test_infinite_losses_whose_gradients_are_finite_count_too(tmp_path):
    """Their updates look good, and must not begin the count anew."""
    runner = toy_runner(tmp_path, model=dict(offset=float('inf')))
    with pytest.raises(UserError, match=r'stopped at iteration 3.*consecutive bad iterations: 3'):
        runner.train()


@OPTIM_WRAPPERS.register_module()
class SkippingOptimWrapper(OptimWrapper):
    """Leaves out all updates but some, in place of a loss scaler, as none runs on a CPU."""

    updates = ()

    def step(self, **kwargs):
        if self._inner_count in self.updates:
            super().step(**kwargs)


@pytest.mark.parametrize(('updates', 'accumulated', 'last'), [((), 1, 32), ((5,), 2, 64)])
def test_updates_that_are_all_left_out_by_a_loss_scaler_stop_the_training(
    tmp_path, monkeypatch, updates, accumulated, last
):
    monkeypatch.setattr(SkippingOptimWrapper, 'updates', updates)
    cfg = toy_config(tmp_path, iterations=100)
    cfg.optim_wrapper.update(type='SkippingOptimWrapper', accumulative_counts=accumulated)
    with pytest.raises(
        UserError, match=rf'stopped at iteration {last}: the loss scaler has skipped'
    ):
        build_runner(cfg).train()


def test_an_update_in_between_begins_the_count_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(SkippingOptimWrapper, 'updates', (30,))
    cfg = toy_config(tmp_path, iterations=60)
    cfg.optim_wrapper.type = 'SkippingOptimWrapper'
    build_runner(cfg).train()


PROCESS = """
from toy import build_runner, toy_config
from mmgcvit.engine import run_tool
cfg = toy_config({folder!r}, bad=[5, 7, 9], launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
run_tool(build_runner(cfg).train)
"""


def test_all_processes_end_when_one_has_bad_losses(tmp_path):
    """Images 1, 3, 5, … are the second process's; the first one's losses stay finite."""
    (tmp_path / 'process.py').write_text(PROCESS.format(folder=str(tmp_path)))
    code, printed = forks.run(tmp_path / 'process.py', out=tmp_path / 'out', timeout=60, ranks=2)
    assert code == 1, printed
    errors = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert errors[0].startswith('error: stopped at iteration 5: the loss is not finite')
    assert 'images/9.jpg (id 109)' in errors[0]
    assert 'Traceback' not in printed
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'images/5.jpg (id 105)' in log
    assert 'images/4.jpg' not in log
