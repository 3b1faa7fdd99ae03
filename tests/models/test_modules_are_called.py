"""Every layer is called as a module: it can be replaced, hooked, quantized, adapted and offloaded.

No implementation, however fast, reads the parameters of another module directly.
"""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from nano import NANO
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, parametrize

from mmgcvit import GCViT, reference
from mmgcvit.weights.layouts import to_nvidia

LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Dropout, nn.MaxPool2d, nn.Identity)
# windows of four sizes in the first stage and of two sizes in the second
IMAGES = torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
# windows of size 4, 4, 4 and 2 divide its feature maps of size 16, 8, 4 and 2
WHOLE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SIZES = pytest.mark.parametrize(
    ('window_size', 'images'), [(4, IMAGES), ((4, 4, 4, 2), WHOLE)], ids=['padded', 'whole']
)
MODES = pytest.mark.parametrize('training', [False, True], ids=['eval', 'training'])


def network(**arguments):
    """A network in which all weights and biases are random."""
    torch.manual_seed(0)
    arguments = dict(window_size=4, drop_rate=0.1, drop_path_rate=0.2) | arguments
    model = GCViT(NANO, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def two_stages(**arguments):
    """A network with few modules that has every layer type, and both types of attention."""
    return network(query_downsamples=(2, 1, 0, 0), out_indices=(0, 1), **arguments)


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


LAYER_NAMES = list(layers_of(two_stages()))


def step(model, training, images=IMAGES):
    """Return the outputs, and the gradients keyed by parameter object."""
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(1)
    outputs = model.train(training)(images)
    sum(out.square().mean() for out in outputs).backward()
    return outputs, {parameter: parameter.grad for parameter in parameters}


def assert_same_step(found, wanted):
    assert all(torch.equal(a, b) for a, b in zip(found[0], wanted[0], strict=True))
    assert found[1].keys() == wanted[1].keys()
    assert all(torch.equal(found[1][parameter], wanted[1][parameter]) for parameter in wanted[1])


def run(model, images=IMAGES):
    with torch.no_grad():
        return model.eval()(images)


def relative_error(found, wanted):
    pairs = zip(found, wanted, strict=True)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)


class Opaque(nn.Module):
    """A wrapper that calls a layer but has none of its attributes."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


def replace(model, name, layer):
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, layer)


def test_all_layer_types_are_tested():
    kinds = {type(layer) for layer in layers_of(two_stages()).values()}
    assert kinds == {nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Dropout, nn.MaxPool2d}
    # a query generator that does not downsample has Identity instead of pooling
    assert nn.Identity in {type(layer) for layer in layers_of(network()).values()}
    # all parameters belong to these layers, except bias tables and layer scales
    model = network()
    of_layers = {p for layer in layers_of(model).values() for p in layer.parameters()}
    others = {name.split('.')[-1] for name, p in model.named_parameters() if p not in of_layers}
    assert others == {'relative_position_bias_table', 'gamma1', 'gamma2'}


@MODES
def test_each_layer_can_be_replaced(training):
    model = two_stages()
    wanted = step(model, training)
    for name in LAYER_NAMES:
        layer = model.get_submodule(name)
        opaque = Opaque(layer)
        replace(model, name, opaque)
        assert_same_step(step(model, training), wanted)
        assert opaque.calls > 0, name
        replace(model, name, layer)


@MODES
@SIZES
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_all_layers_can_be_replaced(training, window_size, images, recompute):
    model = network(window_size=window_size, recompute=recompute)
    wanted = step(model, training, images)
    opaque = {name: Opaque(layer) for name, layer in layers_of(model).items()}
    for name, layer in opaque.items():
        replace(model, name, layer)
    assert_same_step(step(model, training, images), wanted)
    assert [name for name, layer in opaque.items() if layer.calls == 0] == []


@MODES
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_replaced_forward_of_an_instance_is_called(training, recompute):
    """accelerate and bfloat16 mixed precision override ``forward`` of instances."""
    model, seen = network(recompute=recompute), set()
    wanted = step(model, training)
    for name, layer in layers_of(model).items():

        def forward(*args, name=name, original=layer.forward):
            seen.add(name)
            return original(*args)

        layer.forward = forward
    assert_same_step(step(model, training), wanted)
    assert seen == set(layers_of(model))


@MODES
@SIZES
@pytest.mark.parametrize('everywhere', [False, True], ids=['of modules', 'global'])
def test_hooks_fire(training, window_size, images, everywhere):
    model = network(window_size=window_size)
    wanted, layers = step(model, training, images), layers_of(model)
    names = {layer: name for name, layer in layers.items()}
    kinds = ('forward_pre', 'forward', 'full_backward_pre', 'full_backward')
    seen, handles = {kind: set() for kind in kinds}, []
    for kind in kinds:

        def hook(module, *_, kind=kind):
            seen[kind].add(names.get(module))

        if everywhere:
            handles.append(getattr(global_hooks, f'register_module_{kind}_hook')(hook))
        else:
            handles += [getattr(layer, f'register_{kind}_hook')(hook) for layer in names]
    try:
        with warnings.catch_warnings():
            # neither the images nor the zeros projected for padding require gradients
            warnings.filterwarnings('ignore', 'Full backward hook is firing')
            found = step(model, training, images)
    finally:
        for handle in handles:
            handle.remove()
    assert_same_step(found, wanted)
    for kind in kinds:
        assert seen[kind] - {None} == set(layers), kind


@SIZES
def test_hooks_never_get_empty_tensors(window_size, images):
    """Hooks that collect value ranges reduce over the tokens, so there must be at least one."""
    model, ranges = network(window_size=window_size), {}
    for name, layer in layers_of(model).items():

        def hook(module, args, out, name=name):
            ranges.setdefault(name, []).extend([args[0].abs().amax(0), out.abs().amax(0)])

        layer.register_forward_hook(hook)
    run(model, images)
    assert ranges.keys() == layers_of(model).keys()


REPLACEMENTS = {
    'scaled': lambda out: 2 * out,
    'normalized again': lambda out: F.layer_norm(out, out.shape[-1:], eps=1.0),
    'rounded': lambda out: out.bfloat16().float(),
}


@pytest.mark.parametrize('recompute', ['cheap', 'block'])
@pytest.mark.parametrize(
    ('how', 'replaced'),
    [
        (how, replaced)
        for how in ('hook', 'global hook', 'forward', 'pre-hook of linear layers')
        for replaced in REPLACEMENTS
        # the output of such a hook cannot be distinguished from the output of the norm
        if (how, replaced) != ('global hook', 'normalized again')
    ],
)
def test_gradients_of_replaced_outputs(recompute, replaced, how):
    replacement, steps = REPLACEMENTS[replaced], []
    for policy in ('none', recompute):
        model = network(recompute=policy)
        norms = {layer for layer in layers_of(model).values() if type(layer) is nn.LayerNorm}
        handle = None
        if how == 'global hook':

            def hook(module, args, out, norms=norms):
                return replacement(out) if module in norms else None

            handle = global_hooks.register_module_forward_hook(hook)
        for norm in norms:
            if how == 'hook':
                norm.register_forward_hook(lambda module, args, out: replacement(out))
            if how == 'forward':
                norm.forward = lambda x, forward=norm.forward: replacement(forward(x))
        for layer in layers_of(model).values():
            if how.startswith('pre-hook') and type(layer) is nn.Linear:
                layer.register_forward_pre_hook(lambda module, args: replacement(*args))
        try:
            steps.append(step(model, True))
        finally:
            if handle is not None:
                handle.remove()
    wanted, found = ((outputs, list(grads.values())) for outputs, grads in steps)
    for a, b in zip(found[0] + tuple(found[1]), wanted[0] + tuple(wanted[1]), strict=True):
        assert torch.equal(a, b)


class LoRA(nn.Module):
    """A linear layer with a low-rank update (Hu et al., 2022)."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / 4)
        self.B = nn.Parameter(torch.randn(base.out_features, rank) / 4)

    def forward(self, x):
        return self.base(x) + (x @ self.A.t()) @ self.B.t()


@MODES
def test_lora_equals_merged_weights(training):
    merged, adapted = network(), network()
    adapted.requires_grad_(False)
    pairs = []
    for name, layer in layers_of(adapted).items():
        if name.endswith(('attn.qkv', 'attn.proj', 'mlp.fc1')):
            lora, weight = LoRA(layer), merged.get_submodule(name).weight
            replace(adapted, name, lora)
            with torch.no_grad():
                weight.add_(lora.B @ lora.A)
            pairs.append((name, lora, weight))
    assert len(pairs) == 3 * sum(NANO['depths'])
    found, wanted = step(adapted, training), step(merged, training)
    assert relative_error(found[0], wanted[0]) < 2e-5
    learning = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert learning == {f'{name}.{x}' for name, _, _ in pairs for x in 'AB'}
    for name, lora, weight in pairs:
        grads = [lora.A.grad, lora.B.grad]
        expected = [lora.B.t() @ weight.grad, weight.grad @ lora.A.t()]
        assert relative_error(grads, expected) < 2e-4, name


@SIZES
def test_linear_layers_can_be_quantized(window_size, images):
    model = network(window_size=window_size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecated
        quantized = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
        )
    linear = [name for name, layer in layers_of(model).items() if type(layer) is nn.Linear]
    assert all(type(quantized.get_submodule(name)) is not nn.Linear for name in linear)
    found, wanted = run(quantized, images), run(model, images)
    # weights and inputs have 255 levels, and errors accumulate over eight blocks
    assert 0 < relative_error(found, wanted) < 0.1


@pytest.mark.parametrize('absent', ['meta', 'empty'])
def test_weights_can_be_offloaded(absent):
    """accelerate loads a module's own parameters before its forward and offloads them after it."""
    model = network()
    wanted = run(model)
    stored, present = {}, []

    def materialize(module, *_):
        present.append(module)
        module._parameters.update(stored[module])

    def remove(module, *_):
        for name, parameter in stored[module].items():
            away = parameter.detach().to('meta') if absent == 'meta' else torch.empty(0)
            module._parameters[name] = nn.Parameter(away, requires_grad=False)

    for module in model.modules():
        stored[module] = {k: p for k, p in module._parameters.items() if p is not None}
        if stored[module]:
            remove(module)
            module.register_forward_pre_hook(materialize)
            module.register_forward_hook(remove)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(run(model), wanted, strict=True))
    assert {p.numel() for p in model.parameters() if not p.is_meta} <= {0}
    assert set(present) == {module for module, parameters in stored.items() if parameters}


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_weights_can_be_parametrized():
    model, wanted = network(drop_rate=0, drop_path_rate=0), network(drop_rate=0, drop_path_rate=0)
    tables = [name for name, _ in model.named_parameters() if name.endswith('bias_table')]
    for name, layer in layers_of(model).items():
        if name.endswith(('attn.qkv', 'pwconv')):
            parametrizations.weight_norm(layer)
    with torch.no_grad():
        for name in tables:
            attention = model.get_submodule(name.rpartition('.')[0])
            attention.relative_position_bias_table.div_(2)
            parametrize.register_parametrization(
                attention, 'relative_position_bias_table', Doubled()
            )
    found, plain = step(model, True), step(wanted, True)
    assert relative_error(found[0], plain[0]) < 2e-5
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    for name in tables:
        attention, other = (m.get_submodule(name.rpartition('.')[0]) for m in (model, wanted))
        grad = attention.parametrizations.relative_position_bias_table.original.grad
        table = other.relative_position_bias_table
        assert relative_error([grad], [2 * table.grad]) < 2e-4, name
    twin = run(copy.deepcopy(model))
    assert all(torch.equal(a, b) for a, b in zip(twin, run(model), strict=True))


@pytest.mark.parametrize(
    'duplicate',
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=['copy', 'pickle'],
)
def test_copies_compute_the_same_and_are_independent(duplicate):
    model = network()
    step(model, True)
    twin = duplicate(model)
    found, wanted = step(twin, True), step(model, True)
    assert all(torch.equal(a, b) for a, b in zip(found[0], wanted[0], strict=True))
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) and p.stride() == q.stride()
    before = run(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0)
    assert all(torch.equal(a, b) for a, b in zip(run(model), before, strict=True))


def of_reference(model):
    with torch.no_grad():
        state = to_nvidia(model.state_dict())
        return reference.gcvit(state, IMAGES, NANO['num_heads'], (4,) * 4, (3, 2, 1, 0))


class Shifted(nn.Module):
    """A linear layer whose output for zeros is not its bias."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x + 0.3)


@MODES
def test_padding_is_the_projection_of_zeros(training):
    model, plain = (network(drop_rate=0, drop_path_rate=0) for _ in range(2))
    with torch.no_grad():
        for name, layer in layers_of(model).items():
            if name.endswith('attn.qkv'):
                layer.bias.normal_()
                other = plain.get_submodule(name)
                other.bias.copy_(layer.bias + 0.3 * layer.weight.sum(1))
                replace(model, name, Shifted(layer))
    wanted = of_reference(plain)
    assert relative_error(step(plain, training)[0], wanted) < 2e-5
    assert relative_error(step(model, training)[0], wanted) < 2e-5
