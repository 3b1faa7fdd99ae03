"""Recomputation policies change memory, but neither outputs nor gradients."""

import contextlib
import gc

import pytest
import torch
from kept import gelu_outputs, kept_by
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from mmgcvit import GCViT
from mmgcvit.ops import RECOMPUTE_POLICIES, recompute
from mmgcvit.ops.windows import Windows

IMAGES = torch.linspace(-1, 1, 2 * 3 * 50 * 70).mul(40).sin().view(2, 3, 50, 70)
POLICIES = pytest.mark.parametrize('policy', RECOMPUTE_POLICIES)
# versions of torch that do not expose the active hooks treat 'cheap' as 'none'
NEEDS_HOOKS = pytest.mark.skipif(
    not hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks'),
    reason="'cheap' is 'none' here",
)


def set_policy(model, policy):
    model.recompute = policy
    for stage in model.stages:
        stage.recompute = policy
    return model


@pytest.fixture
def model(nano):
    """A model with everything that is random or optional in a block."""
    arguments = dict(window_size=4, drop_path_rate=0.3, drop_rate=0.1, attn_drop_rate=0.1)
    model = GCViT({**nano, 'layer_scale_init_value': 0.5}, **arguments).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def loss_of(outputs):
    return sum(out.float().square().mean() for out in outputs)


def outputs_and_gradients(model, forward=None, images=IMAGES):
    torch.manual_seed(1)
    model.zero_grad()
    images = images.clone().requires_grad_()
    outputs = (forward or model)(images)
    loss_of(outputs).backward()
    return [*outputs, images.grad, *(p.grad.clone() for p in model.parameters())]


def gradients_of(model, policy, parameters):
    torch.manual_seed(1)
    return torch.autograd.grad(loss_of(set_policy(model, policy)(IMAGES)), parameters)


def assert_equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('policy', ['cheap', 'block'])
def test_outputs_and_gradients_are_the_same(model, policy, autocast):
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        wanted = outputs_and_gradients(set_policy(model, 'none'))
        found = outputs_and_gradients(set_policy(model, policy))
    assert_equal(found, wanted)


def tensors_in(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


class Memory(TorchDispatchMode):
    """Record all memory that operations allocate."""

    def __init__(self):
        super().__init__()
        self.noted = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        for x in tensors_in(out):
            storage = x.untyped_storage()
            if storage._cdata not in given:
                self.noted[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def in_use(self):
        """Return the number of recorded bytes that are still referenced."""
        return sum(size for storage, size in self.noted.values() if not storage.expired())


def memory_of(model, images=IMAGES):
    """Return the outputs, and a record of the memory saved for backward, including outputs."""
    # allocate the memory that persists between forward passes first
    loss_of(model(images)).backward()
    gc.collect()
    with Memory() as memory:
        outputs = model(images)
    return outputs, memory


def test_saved_memory(nano):
    model, kept = GCViT(nano, window_size=4, drop_path_rate=0.0).train(), {}
    for policy in RECOMPUTE_POLICIES:
        outputs, memory = memory_of(set_policy(model, policy))
        kept[policy] = memory.in_use()
        del outputs
    assert kept['block'] < kept['cheap'] <= kept['none']
    if hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks'):
        # per token of each block: C elements for each of the two norms and mlp_ratio·C for GELU
        tokens = [13 * 18, 7 * 9, 4 * 5, 2 * 3]
        numbers = sum(
            len(IMAGES) * n * stage.blocks[0].norm1.weight.numel() * 4 * len(stage.blocks)
            for n, stage in zip(tokens, model.stages, strict=True)
        )
        numbers += sum(gelu_outputs(model, IMAGES))
        assert kept['none'] - kept['cheap'] == 4 * numbers


@POLICIES
def test_memory_is_freed_without_the_garbage_collector(model, policy):
    set_policy(model, policy)
    outputs, memory = memory_of(model)
    gc.disable()
    try:
        assert memory.in_use() > 0
        del outputs
        assert memory.in_use() == 0
        outputs, memory = memory_of(model)
        loss = loss_of(outputs)
        loss.backward()
        del outputs, loss
        assert memory.in_use() == 0
    finally:
        gc.enable()


@NEEDS_HOOKS
def test_outputs_of_norms_and_activations_are_not_saved(nano):
    """Blocks save inputs of norms, inputs and outputs of attention, and inputs of GELU, once."""
    network = GCViT(nano, window_size=4).train()
    block, tokens = network.stages[0].blocks[0], 4 * 4 * 9
    windows = Windows(12, 12, 4)
    C = nano['embed_dims']
    x = torch.randn(1, tokens, C, requires_grad=True)
    out, kept = kept_by(network, lambda: recompute('cheap', block, x, windows, None))
    hidden = block.mlp.fc1.out_features
    assert out.shape == (1, tokens, C)
    big = sorted(size for size in kept if size >= tokens * C)
    # inputs of both norms, output of attention, both branches for the gradient of layer scale;
    # query, key and value; hidden channels
    assert big == sorted([tokens * C] * 5 + [3 * tokens * C, tokens * hidden])


@POLICIES
@pytest.mark.parametrize('autocast', [False, True])
def test_inside_another_checkpoint(model, policy, autocast):
    def forward(images):
        return checkpoint(model, images, use_reentrant=False)

    set_policy(model, 'none')
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        wanted = outputs_and_gradients(model)
        found = outputs_and_gradients(set_policy(model, policy), forward)
    assert_equal(found, wanted)
    with Memory() as memory:
        outputs = forward(IMAGES.clone().requires_grad_())
    # images, outputs and the random state, but no activations of the network
    kept = sum(out.nbytes for out in outputs) + IMAGES.nbytes
    assert memory.in_use() <= kept + torch.get_rng_state().nbytes + 1000


@POLICIES
def test_partial_and_second_derivatives_inside_another_checkpoint(model, policy):
    def derivatives(policy, forward):
        set_policy(model, policy)
        torch.manual_seed(1)
        images = IMAGES.clone().requires_grad_()
        loss = loss_of(forward(images))
        parameters = list(model.parameters())
        some = torch.autograd.grad(loss, parameters[-20:], retain_graph=True)
        every = torch.autograd.grad(loss, parameters, retain_graph=True)
        (grad,) = torch.autograd.grad(loss, images, create_graph=True)
        second = torch.autograd.grad(grad.square().sum(), parameters, materialize_grads=True)
        return [*some, *every, grad, *second]

    wanted = derivatives('none', model)
    found = derivatives(policy, lambda images: checkpoint(model, images, use_reentrant=False))
    assert_equal(found, wanted)


@POLICIES
def test_each_stage_inside_another_checkpoint(model, policy):
    """FSDP and mmengine's activation checkpointing wrap modules like this."""
    set_policy(model, 'none')
    wanted = outputs_and_gradients(model)
    set_policy(model, policy)
    for stage in model.stages:
        original = stage.forward
        stage.forward = lambda x, original=original: checkpoint(original, x, use_reentrant=False)
    assert_equal(outputs_and_gradients(model), wanted)


@POLICIES
def test_inside_save_on_cpu(model, policy):
    set_policy(model, 'none')
    wanted = outputs_and_gradients(model)

    def forward(images):
        with torch.autograd.graph.save_on_cpu():
            return model(images)

    assert_equal(outputs_and_gradients(set_policy(model, policy), forward), wanted)


@NEEDS_HOOKS
def test_outer_hooks_get_the_saved_tensors(nano):
    model = GCViT(nano, window_size=4).train()
    calls = {}
    for policy in ('none', 'cheap'):
        calls[policy] = packed, unpacked = [], []

        def pack(tensor, packed=packed):
            packed.append(tensor.nbytes)
            return tensor, len(packed)

        def unpack(kept, unpacked=unpacked):
            unpacked.append(kept[0].nbytes)
            return kept[0]

        set_policy(model, policy)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            outputs = model(IMAGES)
        loss_of(outputs).backward()
    blocks = sum(nano['depths'])
    # tensors saved by the linear layers after both norms, and by the layer after each GELU
    cheap = 3 * blocks + len(gelu_outputs(model, IMAGES))
    assert len(calls['none'][0]) - len(calls['cheap'][0]) == cheap
    # input, weight, bias, mean and deviation of a norm are also unpacked by the norm itself
    assert len(calls['cheap'][1]) >= len(calls['cheap'][0])


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


class Failing(nn.Module):
    def forward(self, x):
        raise FloatingPointError('here')


@POLICIES
def test_hooks_are_removed(model, policy):
    set_policy(model, policy)
    model(IMAGES)
    assert not hooks(model)
    model.stages[2].blocks[1].mlp = Failing()
    with pytest.raises(FloatingPointError, match='here'):
        model(IMAGES)
    assert not hooks(model)
    # no saved tensor hooks are left either
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    assert y.grad_fn._saved_result.data_ptr() == y.data_ptr()


class OtherBlock(nn.Module):
    """A custom block with several kinds of norms, operations in between and multiple consumers."""

    def __init__(self, dim):
        super().__init__()
        self.norms = nn.ModuleList(
            [
                nn.LayerNorm(dim, eps=1e-1),
                nn.LayerNorm(dim, eps=1.0),
                nn.LayerNorm(dim, elementwise_affine=False),
                nn.LayerNorm((2, dim // 2), eps=1e-2),
            ]
        )
        self.linears = nn.ModuleList(nn.Linear(dim, dim) for _ in self.norms)
        self.gelus = nn.ModuleList([nn.GELU(), nn.GELU('tanh')])

    def forward(self, x, windows, global_query=None):
        first, second, third, fourth = self.linears
        # the output of one norm has several consumers, some of them through views
        y = self.norms[0](x)
        y = first(y) + second(y.view(-1, y.shape[-1])).view_as(y) + y.mT.contiguous().mT
        y = self.gelus[0](y + self.norms[1](y).sin())
        y = third(self.gelus[1](third(y))) + third(y)
        y = self.norms[2](y) * self.norms[2](x)
        y = self.norms[3](y.unflatten(-1, (2, -1))).flatten(-2)
        return x + fourth(y)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('policy', ['cheap', 'block'])
def test_any_module_can_be_a_block(model, policy, autocast):
    for stage in model.stages:
        for i in range(len(stage.blocks)):
            stage.blocks[i] = OtherBlock(stage.blocks[i].norm1.weight.numel())
    model.zero_grad()
    del model.stages[0].query_generator, model.stages[2].query_generator
    del model.stages[3].query_generator
    for stage in model.stages:
        stage.query_generator = None

    def checkpointed(images):
        return checkpoint(model, images, use_reentrant=False)

    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        wanted = outputs_and_gradients(set_policy(model, 'none'))
        for forward in (model, checkpointed):
            assert_equal(outputs_and_gradients(set_policy(model, policy), forward), wanted)


def doubled(norm, args, out):
    return 2 * out


@POLICIES
def test_user_hooks(model, policy):
    """Hooks of users may inspect or replace the outputs of modules."""
    seen = []
    for stage in model.stages:
        block = stage.blocks[-1]
        block.norm1.register_forward_hook(doubled)
        block.norm2.register_forward_pre_hook(lambda norm, args: args[0] + 1)
        block.mlp.fc2.register_full_backward_hook(lambda *args: seen.append(args))
    wanted = outputs_and_gradients(set_policy(model, 'none'))
    number = len(seen)
    assert_equal(outputs_and_gradients(set_policy(model, policy)), wanted)
    assert len(seen) == 2 * number > 0


@POLICIES
def test_user_forward_methods(model, policy):
    """Users may replace forward methods, for example with a faster norm."""
    for stage in model.stages:
        norm = stage.blocks[-1].norm1
        norm.forward = lambda x, norm=norm: x / x.square().mean(-1, True).sqrt() * norm.weight
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('norm1.bias' not in name)
    model.zero_grad()
    grads = []
    for each in ('none', policy):
        torch.manual_seed(1)
        loss = loss_of(set_policy(model, each)(IMAGES))
        grads.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    assert_equal(grads[1], grads[0])


@POLICIES
def test_frozen_norms(model, policy):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(False)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert_equal(gradients_of(model, policy, learning), gradients_of(model, 'none', learning))


@POLICIES
def test_second_derivatives(model, policy):
    found = []
    for each in ('none', policy):
        set_policy(model, each)
        torch.manual_seed(1)
        images = IMAGES.clone().requires_grad_()
        loss = loss_of(model(images))
        (grad,) = torch.autograd.grad(loss, images, create_graph=True)
        penalty = grad.square().sum()
        found.append(torch.autograd.grad(penalty, list(model.parameters()), materialize_grads=True))
    assert any(grad.any() for grad in found[0])
    assert_equal(found[1], found[0])


@POLICIES
def test_backward_passes_can_be_repeated(model, policy):
    set_policy(model, policy)
    parameters = list(model.parameters())
    loss = loss_of(model(IMAGES))
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert_equal(second, first)
    with pytest.raises(RuntimeError, match=r'second time|already been freed'):
        torch.autograd.grad(loss, parameters)


@POLICIES
def test_gradients_of_a_subset_of_parameters(model, policy):
    """The backward pass must not require parts of the graph that it does not visit."""
    learning = list(model.stages[2].blocks[1].parameters())
    assert_equal(gradients_of(model, policy, learning), gradients_of(model, 'none', learning))


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@POLICIES
def test_in_evaluation(model, policy, context):
    model.eval()
    wanted = set_policy(model, 'none')(IMAGES)
    with context():
        assert_equal(set_policy(model, policy)(IMAGES), wanted)


def scale_weight(network):
    network.stages[0].blocks[1].attn.proj.weight.mul_(2)


def scale_norm(network):
    network.stages[2].blocks[0].norm1.weight.mul_(2)


def scale_table(network):
    network.stages[2].blocks[1].attn.relative_position_bias_table.mul_(2)


@pytest.mark.parametrize('change', [scale_weight, scale_norm, scale_table])
@pytest.mark.parametrize('policy', ['none', 'cheap'])
def test_in_place_changes_before_the_backward_pass_are_detected(nano, policy, change):
    network = set_policy(GCViT(nano, window_size=4), policy)
    loss = loss_of(network(IMAGES))
    with torch.no_grad():
        change(network)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


@pytest.mark.parametrize('policy', ['none', 'cheap'])
def test_hook_that_modifies_a_saved_tensor_is_detected(nano, policy):
    network = set_policy(GCViT(nano, window_size=4), policy)
    proj = network.stages[0].blocks[0].attn.proj

    def change(module, inputs, out):
        inputs[0].detach().mul_(3)

    proj.register_forward_hook(change)
    loss = loss_of(network(IMAGES))
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_disabled_saved_tensor_hooks(nano):
    network = set_policy(GCViT(nano, window_size=4), 'cheap')
    expected = outputs_and_gradients(network)
    with torch.autograd.graph.disable_saved_tensors_hooks('not here'):
        assert_equal(outputs_and_gradients(network), expected)
