"""Evaluation detects every change of a position bias table and is independent of other threads.

The reuse of buffers, see mmgcvit/ops/scratch.py, must not affect results.
"""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner

from mmgcvit import GCViT

IMAGES = torch.linspace(-1, 1, 3 * 45 * 70).reshape(1, 3, 45, 70)


@pytest.fixture
def model(nano):
    return GCViT(nano, window_size=4).eval()


def maps(model, images=IMAGES):
    with torch.no_grad():
        return model(images)


def assert_fresh(model):
    """Check that the outputs equal those of a copy, which has no cached biases."""
    expected = maps(copy.deepcopy(model))
    assert all(torch.equal(a, b) for a, b in zip(maps(model), expected, strict=True))


def table(model):
    return model.stages[2].blocks[1].attn.relative_position_bias_table


def change_in_place(model):
    with torch.no_grad():
        table(model).mul_(-3)


def change_data(model):
    table(model).data.mul_(-3)


def change_in_numpy(model):
    table(model).detach().numpy()[:] *= -3


def load_state(model):
    model.load_state_dict({k: v + 1 if 'table' in k else v for k, v in model.state_dict().items()})


def load_assigned(model):
    state = {k: v * -3 if 'table' in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def change_data_while_training(model):
    model.train()
    table(model).data.mul_(-3)
    model.eval()


def replace_by_one_of_the_same_version(model):
    new = torch.nn.Parameter(table(model).detach() * -3)
    with torch.no_grad():
        while new._version < table(model)._version:
            new.mul_(1)
    model.stages[2].blocks[1].attn.relative_position_bias_table = new


@pytest.mark.parametrize(
    'change',
    [
        change_in_place,
        change_data,
        change_in_numpy,
        load_state,
        load_assigned,
        change_data_while_training,
        replace_by_one_of_the_same_version,
    ],
)
@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
def test_changes_are_detected(model, change, context):
    with context():
        before = model(IMAGES)
    change(model)
    with context():
        after = model(IMAGES)
    assert_fresh(model)
    assert all(torch.equal(a, b) for a, b in zip(maps(model), after, strict=True))
    assert not torch.equal(after[2], before[2])


def test_replaced_storage_is_detected(model):
    before = maps(model)
    parameters = list(model.parameters())
    vector = torch.nn.utils.parameters_to_vector(parameters)
    torch.nn.utils.vector_to_parameters(vector * 2, parameters)
    assert not torch.allclose(maps(model)[2], before[2])
    # not bitwise equal, since another memory alignment changes the order of summation
    for a, b in zip(maps(model), maps(copy.deepcopy(model)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options', [{}, {'foreach': True}, {'fused': True}])
def test_training_steps_are_detected(model, options):
    maps(model)
    try:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, **options)
    except RuntimeError as error:
        pytest.skip(str(error))
    for _ in range(2):  # in eval mode, as in fine-tuning with frozen norms
        before = maps(model)
        sum(out.square().mean() for out in model(IMAGES)).backward()
        optimizer.step()
        assert_fresh(model)
        assert not torch.allclose(maps(model)[2], before[2])
    assert table(model).grad.abs().sum() > 0


def test_averaged_weights_are_detected(model):
    averaged = ExponentialMovingAverage(model, momentum=0.5)
    averaged.eval()
    maps(averaged)
    for _ in range(2):
        change_data(model)
        before = maps(averaged)
        averaged.update_parameters(model)
        assert_fresh(averaged.module)
    assert not torch.equal(maps(averaged)[2], before[2])
    assert not torch.equal(maps(averaged)[2], maps(model)[2])


def test_copies_and_files_compute_the_same(model):
    expected = maps(model)
    names = set(model.state_dict())
    assert names == {name for name, _ in model.named_parameters()}
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(maps(other), expected, strict=True))
        change_in_place(other)
        assert not torch.equal(maps(other)[2], expected[2])
    assert all(torch.equal(a, b) for a, b in zip(maps(model), expected, strict=True))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_traces_depend_on_the_table(model):
    maps(model)
    with torch.no_grad():
        traced = torch.jit.trace(model, IMAGES)
        change_in_place(model)
        for a, b in zip(traced(IMAGES), model(IMAGES), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_inference_mode(nano):
    with torch.inference_mode():
        model = GCViT(nano, window_size=4).eval()
        first = model(IMAGES)
        table(model).mul_(-3)
        assert not torch.equal(model(IMAGES)[2], first[2])


def test_gradients_after_inference_mode(model):
    table(model).requires_grad_(False)
    with torch.inference_mode():
        model(IMAGES)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    images = IMAGES.clone().requires_grad_()
    sum(out.sum() for out in model(images)).backward()
    assert images.grad.abs().sum() > 0


def gradients(model, images=IMAGES):
    loss = sum(out.square().mean() for out in model(images))
    return torch.autograd.grad(loss, list(model.parameters()))


def inferred(model, images=IMAGES):
    with torch.inference_mode():
        return [out + 0 for out in model(images)]


def assert_close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('first', [maps, inferred, gradients])
@pytest.mark.parametrize('then', [maps, inferred, gradients])
def test_sequence_of_modes(model, first, then):
    """Run in a new thread, which has no buffers yet, starting with images that need small ones."""
    expected = first(model, IMAGES[..., :20]), then(model, IMAGES), first(model, IMAGES)

    def run():
        return first(model, IMAGES[..., :20]), then(model, IMAGES), first(model, IMAGES)

    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(run).result()
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize('function', [maps, inferred, gradients])
def test_threads(model, function):
    """Run two threads, which share the model for inference and have copies for training."""
    models = [model, copy.deepcopy(model) if function is gradients else model]
    # another window layout and batch size, so the threads need buffers of different sizes
    images = [IMAGES, IMAGES.mT.repeat(2, 1, 1, 1)]
    expected = [function(*arguments) for arguments in zip(models, images, strict=True)]

    def run(i):
        return [function(models[i], images[i]) for _ in range(10)]

    with ThreadPoolExecutor(2) as threads:
        for found, wanted in zip(threads.map(run, range(2)), expected, strict=True):
            for one in found:
                assert_close(one, wanted)


@MODELS.register_module(force=True)
class AveragedModel(BaseModel):
    def __init__(self, arch):
        super().__init__()
        self.backbone = GCViT(arch, window_size=4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.backbone(torch.stack(inputs))[2]
        return {'loss': -out.square().mean()} if mode == 'loss' else [out]


@METRICS.register_module(force=True)
class KeepOutputs(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(data_samples[0])

    def compute_metrics(self, results):
        return {'sum': float(results[-1].double().sum())}


def test_averaged_weights_of_ema_hook_are_detected(nano, tmp_path):
    """EMAHook swaps weights through ``.data`` before validation, which then calls eval()."""
    loader = dict(
        batch_size=1,
        num_workers=0,
        dataset=[dict(inputs=IMAGES[0], data_samples=[])],
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    runner = Runner.from_cfg(
        Config(
            dict(
                model=dict(type='AveragedModel', arch=nano),
                work_dir=str(tmp_path),
                experiment_name=tmp_path.name,
                train_dataloader=loader,
                val_dataloader=loader,
                val_evaluator=dict(type='KeepOutputs'),
                train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
                val_cfg=dict(),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
                custom_hooks=[dict(type='EMAHook', momentum=0.5)],
                default_scope='mmengine',
            )
        )
    )
    runner.train()
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    averaged = hook.ema_model.module
    expected = maps(copy.deepcopy(averaged.backbone).eval())[2]
    found = runner.message_hub.get_scalar('val/sum').current()
    assert found == pytest.approx(float(expected.double().sum()), rel=1e-6)
    plain = maps(copy.deepcopy(runner.model.backbone).eval())[2]
    assert found != pytest.approx(float(plain.double().sum()), rel=1e-3)
