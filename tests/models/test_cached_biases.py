"""Position biases are gathered once in evaluation, and never stale."""

import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner

from mmgcvit import GCViT
from mmgcvit.models.position_bias import position_bias

IMAGES = torch.linspace(-1, 1, 3 * 45 * 70).reshape(1, 3, 45, 70)


@pytest.fixture
def gathered(monkeypatch):
    """The times that a bias was gathered."""
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return position_bias(*arguments)

    for module in ('attention', 'position_bias'):
        monkeypatch.setattr(f'mmgcvit.models.{module}.position_bias', counting)
    return calls


@pytest.fixture
def model(nano):
    return GCViT(nano, window_size=4).eval()


def maps(model, images=IMAGES):
    with torch.no_grad():
        return model(images)


def assert_fresh(model):
    """Its maps are those of a copy that has kept nothing."""
    expected = maps(copy.deepcopy(model))
    assert all(torch.equal(a, b) for a, b in zip(maps(model), expected, strict=True))


def test_once_for_each_size_of_windows(model, gathered):
    first = maps(model)
    number = len(gathered)
    assert number > 0
    assert all(torch.equal(a, b) for a, b in zip(maps(model), first, strict=True))
    maps(model, IMAGES.repeat(2, 1, 1, 1))
    assert len(gathered) == number
    maps(model, IMAGES[..., :40, :50])
    assert len(gathered) > number


def table(model):
    return model.stages[2].blocks[1].attn.relative_position_bias_table


def change_in_place(model):
    with torch.no_grad():
        table(model).mul_(-3)


def load_state(model):
    model.load_state_dict({k: v + 1 if 'table' in k else v for k, v in model.state_dict().items()})


def load_assigned(model):
    state = {k: v * -3 if 'table' in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def change_data_and_call_eval(model):
    table(model).data.mul_(-3)
    model.eval()


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
        load_state,
        load_assigned,
        change_data_and_call_eval,
        change_data_while_training,
        lambda model: model.double().float(),
        lambda model: model.half().float(),
        replace_by_one_of_the_same_version,
    ],
)
def test_changes_are_seen(model, change):
    before = maps(model)
    change(model)
    assert_fresh(model)
    assert not torch.equal(maps(model)[2], before[2]) or 'lambda' in change.__name__


def test_other_memory_is_seen(model):
    before = maps(model)
    parameters = list(model.parameters())
    vector = torch.nn.utils.parameters_to_vector(parameters)
    torch.nn.utils.vector_to_parameters(vector * 2, parameters)
    assert not torch.allclose(maps(model)[2], before[2])
    # not equal: memory that is aligned in another way is added up in another order
    for a, b in zip(maps(model), maps(copy.deepcopy(model)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_training_steps_are_seen(model):
    maps(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # in eval mode, as when frozen norms are fine-tuned
        sum(out.square().mean() for out in model(IMAGES)).backward()
        optimizer.step()
        assert_fresh(model)
    assert table(model).grad.abs().sum() > 0


def test_copies_and_files_have_none(model):
    maps(model)
    attention = model.stages[0].blocks[0].attn
    assert len(attention._biases) > 0
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert len(other._biases) == 0
    assert not any('_biases' in name for name in model.state_dict())


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_traces_depend_on_the_table(model):
    maps(model)
    kept = len(model.stages[0].blocks[0].attn._biases)
    with torch.no_grad():
        traced = torch.jit.trace(model, IMAGES)
        # sizes are other objects there in each call
        assert len(model.stages[0].blocks[0].attn._biases) == kept
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


def test_mmengines_averaged_weights_are_seen(nano, tmp_path):
    """EMAHook swaps weights through ``.data`` before a validation, which then calls eval()."""
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
                experiment_name='averaged',
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
