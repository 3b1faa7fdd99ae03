"""What BadLossHook does on a GPU, on a CPU: its kernels of fused optimizers skip updates too.

Without a GPU, these tests make the hook treat the CPU as one: the optimizer skips the update, and
flags are read one iteration later. Fake tensors on CUDA then show that nothing waits for the host.
"""

import copy
from types import SimpleNamespace

import forks
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from packaging.version import Version
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy import ToyModel, toy_config

from mmgcvit.engine import BadLossHook, build_runner, reduced_flags
from mmgcvit.engine.hooks import bad_loss
from mmgcvit.engine.reduced_flags import ReducedFlags
from mmgcvit.errors import UserError

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version('2.4'), reason='no fused optimizers on a CPU'
)
OPTIMIZERS = {
    'adamw': dict(type='AdamW', lr=0.1, weight_decay=0.1),
    'adam': dict(type='Adam', lr=0.1),
    'sgd': dict(type='SGD', lr=0.1),
    'momentum': dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1),
    'dampening': dict(type='SGD', lr=0.1, momentum=0.9, dampening=0.5),
}


class OneLater(ReducedFlags):
    """Flags that are available one iteration later, as on a GPU."""

    def exchange(self, *flags):
        previous = self.flush()
        self._start(flags)
        return previous


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(bad_loss, 'HOST_DECIDES', ())
    monkeypatch.setattr(bad_loss, 'ReducedFlags', OneLater)


@pytest.fixture
def by_kernel(monkeypatch):
    """The updates in which the optimizer itself had to look whether to skip."""
    updates = []
    before = BadLossHook._before_update

    def spy(self, optimizer, *args):
        before(self, optimizer, *args)
        updates.append(getattr(optimizer, 'found_inf', None))

    monkeypatch.setattr(BadLossHook, '_before_update', spy)
    return updates


def train(tmp_path, optimizer, bad=(), iterations=6, start=None, interval=100, **settings):
    cfg = toy_config(tmp_path, bad=bad, iterations=iterations, **settings)
    cfg.optim_wrapper.optimizer = dict(optimizer, fused=True)
    cfg.default_hooks.checkpoint.interval = interval
    runner = build_runner(cfg)
    if start is not None:
        runner.model.load_state_dict(start)
    start = copy.deepcopy(runner.model.state_dict())
    runner.train()
    return runner, start


@pytest.mark.parametrize('bad', [[2], [0], [0, 1, 3, 5]], ids=str)
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_skipped_update_leaves_weights_and_moments_as_they_were(tmp_path, by_kernel, name, bad):
    """Bit for bit what a training without the bad iterations gives."""
    spoilt, start = train(tmp_path / 'bad', OPTIMIZERS[name], bad)
    assert len(by_kernel) == 6
    # SGD's kernel would begin with a momentum of whatever the memory holds
    without_momentum = next(i for i in range(6) if i not in bad) + 1
    waiting = without_momentum if 'momentum' in OPTIMIZERS[name] else 0
    assert [found is None for found in by_kernel] == [i < waiting for i in range(6)]
    good, _ = train(tmp_path / 'good', OPTIMIZERS[name], iterations=6 - len(bad), start=start)
    for key, tensor in good.model.state_dict().items():
        assert torch.equal(spoilt.model.state_dict()[key], tensor), key
    states = [runner.optim_wrapper.optimizer.state_dict()['state'] for runner in (spoilt, good)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[1].items():
        for key, value in state.items():
            assert value is None or torch.equal(states[0][index][key], value), key
    assert not hasattr(spoilt.optim_wrapper.optimizer, 'found_inf')


def test_an_optimizer_without_such_a_kernel_leaves_the_decision_to_the_host(tmp_path):
    cfg = toy_config(tmp_path, bad=[2])
    runner = build_runner(cfg)
    runner.train()
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())


def test_a_bad_iteration_is_reported_one_later(tmp_path):
    with pytest.raises(UserError, match=r'stopped at iteration 4: the loss .*images/3\.jpg'):
        train(tmp_path, OPTIMIZERS['adamw'], bad=[1, 2, 3], iterations=30)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Iter(train) [ 5/30]' not in log  # it stops in the iteration after it
    assert 'iteration 2: the loss is not finite (loss nan, loss_cls nan), update skipped' in log
    assert 'images: images/1.jpg (id 101)' in log


def test_it_is_reported_before_a_checkpoint_is_saved(tmp_path):
    with pytest.raises(UserError, match='stopped at iteration 7'):
        train(tmp_path, OPTIMIZERS['adamw'], bad=[4, 5, 6], iterations=20, interval=1)
    assert sorted(path.name for path in tmp_path.glob('iter_*.pth'))[-1] == 'iter_6.pth'
    good, last = (
        torch.load(tmp_path / f'iter_{i}.pth', weights_only=False)['state_dict'] for i in (4, 6)
    )
    assert all(torch.equal(good[name], last[name]) for name in good)


def test_it_is_reported_at_the_end_of_the_training(tmp_path):
    cfg = toy_config(tmp_path, bad=[3, 4, 5], iterations=6)
    cfg.default_hooks.checkpoint = None  # which would have it reported
    with pytest.raises(UserError, match='stopped at iteration 6'):
        build_runner(cfg).train()


def test_a_good_iteration_in_between_resets_the_count(tmp_path):
    train(tmp_path, OPTIMIZERS['adamw'], bad=[1, 2, 4, 5, 7, 8], iterations=10)


def test_spoilt_batch_norm_stops_before_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r'iteration 3.*contains values that are not finite'):
        train(
            *(tmp_path, OPTIMIZERS['adamw']),
            **dict(bad=[5], batch=2, model=dict(batch_norm=True), interval=1),
        )
    assert (tmp_path / 'iter_2.pth').exists() and not (tmp_path / 'iter_3.pth').exists()


def test_the_state_of_the_hook_at_a_checkpoint_has_all_iterations(tmp_path):
    runner, _ = train(tmp_path, OPTIMIZERS['adamw'], bad=[4, 5])
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, BadLossHook))
    assert hook.state_dict() == {'bad': 2, 'skipped': 0}
    other = BadLossHook()
    other.load_state_dict(hook.state_dict())
    assert other.state_dict() == hook.state_dict()


def test_a_hook_may_begin_several_trainings(tmp_path, log):
    """Otherwise it would take its own flag for the loss scaler's."""
    cfg = toy_config(tmp_path, bad=[2], iterations=4)
    cfg.optim_wrapper.optimizer.fused = True
    runner = build_runner(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, BadLossHook))
    hook.before_train(runner)
    runner.train()
    assert [
        line for line in log if 'iteration 3: the loss is not finite' in line and 'skipp' in line
    ]


def test_what_an_optimizer_had_before_an_update_comes_back():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    hook = BadLossHook()
    optimizer.register_step_pre_hook(hook._before_update)
    optimizer.register_step_post_hook(hook._after_update)
    optimizer.found_inf = before = torch.tensor(0.0)
    parameter.grad = torch.full((3,), torch.nan)
    optimizer.step()
    assert optimizer.found_inf is before and before == 0 and torch.equal(parameter, torch.ones(3))


@OPTIM_WRAPPERS.register_module()
class ScalingOptimWrapper(OptimWrapper):
    """AmpOptimWrapper's loss scaling, on a CPU."""

    scale = 2.0**16

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=self.scale)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def scaled_training(tmp_path, scale, iterations, clip=None, bad=(), optimizer='adamw'):
    cfg = toy_config(tmp_path, bad=bad, iterations=iterations)
    cfg.optim_wrapper = dict(
        type='ScalingOptimWrapper', optimizer=dict(OPTIMIZERS[optimizer], fused=True)
    )
    if clip:
        cfg.optim_wrapper.clip_grad = dict(max_norm=clip)
    runner = build_runner(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    for parameter in runner.model.parameters():
        parameter.data *= 100  # large gradients
    start = copy.deepcopy(runner.model.state_dict())
    runner.train()
    changed = not torch.equal(start['backbone.weight'], runner.model.backbone.weight)
    return runner, changed


@pytest.mark.parametrize('optimizer', ['adamw', 'momentum'])
@pytest.mark.parametrize('clip', [None, 35.0])
def test_updates_that_a_loss_scaler_skips_are_not_bad(tmp_path, clip, optimizer, log):
    """A loss scaler begins with a scale that is too large, and skips a few updates."""
    runner, changed = scaled_training(tmp_path, 2.0**126, 30, clip, optimizer=optimizer)
    assert changed and runner.optim_wrapper.loss_scaler.get_scale() < 2.0**122
    assert not [line for line in log if 'not finite' in line]
    assert not hasattr(runner.optim_wrapper.optimizer, 'found_inf')


def test_updates_that_are_all_skipped_by_a_loss_scaler_stop_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_loss, 'MAX_SKIPPED', 5)
    with pytest.raises(UserError, match='stopped at iteration 5: the loss scaler has skipped 5'):
        scaled_training(tmp_path, 2.0**126, 30)


def test_a_loss_scaler_does_not_hide_a_bad_loss(tmp_path):
    with pytest.raises(UserError, match='stopped at iteration 4: the loss is not finite'):
        scaled_training(tmp_path, 1024.0, 30, bad=[1, 2, 3])


@pytest.mark.parametrize('fused', [True, None])
def test_a_checkpoint_does_not_switch_to_another_kernel(tmp_path, fused):
    """The settings of an optimizer's groups are in checkpoints, and replace the config's."""
    settings = {True: dict(fused=True), None: {}}
    cfg = toy_config(tmp_path, iterations=2)
    cfg.optim_wrapper.optimizer.update(settings[not fused or None])
    build_runner(cfg).train()
    cfg.train_cfg.max_iters = 4
    cfg.optim_wrapper.optimizer = dict(OPTIMIZERS['adamw'], **settings[fused])
    cfg.resume = 'auto'
    runner = build_runner(cfg)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    assert [group['fused'] for group in optimizer.param_groups] == [fused]
    assert {float(state['step']) for state in optimizer.state.values()} == {4.0}


@pytest.mark.parametrize(('name', 'fused'), [('adamw', True), ('momentum', True), ('adamw', False)])
def test_nothing_waits_for_the_host(monkeypatch, name, fused):
    """A fake tensor on CUDA raises an exception where its value is read."""
    copies = []

    def to_host(values):  # replaces page-locked memory and a CUDA event
        assert values.device.type == 'cuda'
        copies.append(values)
        return SimpleNamespace(tolist=lambda: [0, 0, 0]), None

    monkeypatch.setattr(bad_loss, 'HOST_DECIDES', ('cpu',))
    monkeypatch.setattr(bad_loss, 'ReducedFlags', ReducedFlags)
    monkeypatch.setattr(reduced_flags, 'copy_to_host', to_host)
    with torch.library._scoped_library('aten', 'IMPL') as library, FakeTensorMode():
        for kernel in ('_fused_adamw_', '_fused_sgd_'):  # they have none for fake tensors
            library.impl(kernel, lambda *_, **__: None, 'Meta')
        with torch.device('cuda'):
            model = ToyModel()
        settings = dict(OPTIMIZERS[name], fused=fused)
        optimizer = getattr(torch.optim, settings.pop('type'))(model.parameters(), **settings)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if name == 'momentum':  # of an earlier update: the first one waits
            for parameter in model.parameters():
                optimizer.state[parameter]['momentum_buffer'] = torch.ones_like(parameter)
        runner = SimpleNamespace(
            iter=0, model=model, optim_wrapper=OptimWrapper(optimizer), save_checkpoint=print
        )
        hook = BadLossHook()
        hook.before_train(runner)

        def iterate():
            hook.before_train_iter(runner, runner.iter, {})
            optimizer.step()
            loss = torch.ones((), device='cuda')
            hook.after_train_iter(runner, runner.iter, {}, {'loss': loss})
            runner.iter += 1

        if fused:
            for _ in range(3):
                iterate()
            hook.after_train(runner)
            assert len(copies) == 3
        else:
            with pytest.raises(DataDependentOutputException):
                iterate()


PROCESS = """
import torch
from toy import build_runner, toy_config
from test_skipping_on_device import OneLater
from mmgcvit.engine import run_tool
from mmgcvit.engine.hooks import bad_loss
bad_loss.HOST_DECIDES, bad_loss.ReducedFlags = (), OneLater
cfg = toy_config({folder!r}, bad={bad}, iterations=6, launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
cfg.optim_wrapper.optimizer.fused = True
cfg.default_hooks.checkpoint.interval = 100
runner = build_runner(cfg)
def main():
    runner.train()
    weights = torch.cat([p.detach().flatten() for p in runner.model.parameters()])
    other = [torch.zeros_like(weights) for _ in range(2)]
    torch.distributed.all_gather(other, weights)
    assert torch.equal(*other) and torch.isfinite(weights).all()
run_tool(main)
"""


SHARDS = """
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmgcvit.engine import BadLossHook, run_tool
from mmgcvit.engine.hooks import bad_loss
from mmgcvit.engine.launch import start_processes

def main():
    start_processes(Config(dict(launcher='pytorch')), 'cpu')
    bad_loss.HOST_DECIDES = {devices!r}
    shard = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([shard], lr=0.1, fused=True)
    optimizer.register_step_pre_hook(BadLossHook()._before_update)
    shard.grad = torch.full((3,), torch.nan if get_rank() == 1 else 1.0)
    optimizer.step()
    assert torch.equal(shard, torch.ones(3)), shard
run_tool(main)
"""


@pytest.mark.parametrize('devices', [(), ('cpu',)], ids=['device', 'host'])
def test_all_shards_of_a_model_skip_an_update_if_the_gradients_of_one_are_bad(tmp_path, devices):
    (tmp_path / 'process.py').write_text(SHARDS.format(devices=devices))
    path = tmp_path / 'process.py'
    code, printed = forks.run(path, out=tmp_path / 'out', timeout=60, ranks=2)
    assert code == 0, printed


@pytest.mark.parametrize(('bad', 'code'), [([3, 7], 0), ([3, 5, 7], 1)])
def test_all_processes_skip_and_stop_alike_when_one_has_bad_losses(tmp_path, bad, code):
    (tmp_path / 'process.py').write_text(PROCESS.format(folder=str(tmp_path), bad=bad))
    script = dict(out=tmp_path / 'out', timeout=60, ranks=2)
    path = str(tmp_path / 'process.py')
    ended, printed = forks.run(path, **script, PYTHONPATH=str(tmp_path))
    assert ended == code, printed
    errors = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(errors) == code  # all processes stop, and the first one reports it
    for error in errors:
        assert error.startswith('error: stopped at iteration 4: the loss is not finite')
    assert 'images/3.jpg (id 103)' in printed and 'images/2.jpg' not in printed
