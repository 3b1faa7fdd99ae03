"""Mutated files either cause a clear error or load exactly the tensors in the file."""

import io
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.weights import Checkpoint, load_pretrained, reading
from mmgcvit.weights.layouts import LAYOUTS

ARCH = dict(
    embed_dims=4,
    depths=(2, 1, 1, 1),
    num_heads=(1, 1, 1, 1),
    mlp_ratio=1,
    layer_scale_init_value=None,
)
FORMATS = ('zip', 'old', 'safetensors')
budget = settings(deadline=None, suppress_health_check=list(HealthCheck))


def written(state, form):
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if form == 'safetensors':
        return save_safetensors(state)
    file = io.BytesIO()
    torch.save({'state_dict': state}, file, _use_new_zipfile_serialization=form == 'zip')
    return file.getvalue()


def read_plainly(content, form):
    """Read a file with the standard reader of its format."""
    if form == 'safetensors':
        return load_safetensors(content)
    return torch.load(io.BytesIO(content), weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def files():
    """Files of a small network by format and layout, and the network's state dict."""
    torch.manual_seed(0)
    model = GCViT(ARCH, window_size=2, out_indices=(3,))
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    named = {name: layout.from_own(state) for name, layout in LAYOUTS.items()}
    return {(f, n): written(named[n], f) for f in FORMATS for n in named}, state


@pytest.fixture(scope='module')
def model():
    return GCViT(ARCH, window_size=2, out_indices=(3,))


def load(model, path, content):
    """Return whether a file was loaded. If not, check the error and that the model is unchanged."""
    path.write_bytes(content)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    try:
        load_pretrained(model, path)
    except UserError as error:
        assert str(path) in str(error) and '\n' not in str(error) and len(str(error)) > 60
        assert all((tensor == 7).all() for tensor in model.parameters())
        return False
    return True


def assert_holds(model, state):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].float()), name


@st.composite
def changes(draw):
    """A function that changes a few bytes of a file."""
    kind = draw(st.sampled_from(['flip', 'set', 'cut', 'insert', 'remove', 'double', 'swap']))
    # most of a file's structure is at its ends
    place = draw(st.floats(0, 1) | st.floats(0, 0.02) | st.floats(0.98, 1))
    amount = draw(st.integers(1, 64))
    value = draw(st.integers(0, 255))

    def change(content):
        content = bytearray(content)
        at = min(int(place * len(content)), len(content) - 1)
        if kind == 'flip':
            content[at] ^= 1 << value % 8
        elif kind == 'set':
            content[at : at + amount] = bytes([value]) * len(content[at : at + amount])
        elif kind == 'cut':
            del content[at:]
        elif kind == 'insert':
            content[at:at] = random.Random(value).randbytes(amount)
        elif kind == 'remove':
            del content[at : at + amount]
        elif kind == 'double':
            content[at:at] = content[at : at + amount]
        else:
            other = len(content) // 2
            parts = bytes(content[at : at + amount]), bytes(content[other : other + amount])
            content[at : at + amount], content[other : other + amount] = parts[1], parts[0]
        return bytes(content)

    return change


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('reader', ['torch', 'restricted'])
def test_changed_bytes(files, model, tmp_path, form, reader, monkeypatch):
    if form == 'safetensors' and reader == 'restricted':
        pytest.skip('read without either')
    if form != 'safetensors' and reader == 'torch' and not reading.TORCH_TAKES_GLOBALS:
        pytest.skip('this torch cannot')
    if reader == 'restricted':
        monkeypatch.setattr(reading, 'TORCH_TAKES_GLOBALS', False)
    contents, original = files
    results = []

    @settings(budget, max_examples=150, derandomize=True)
    @given(change=changes(), layout=st.sampled_from(list(LAYOUTS)))
    def mutate(change, layout):
        whole = contents[form, layout]
        changed = change(whole)
        loaded = load(model, tmp_path / 'changed.pth', changed)
        results.append(loaded)
        if not loaded:
            assert changed != whole
        elif form == 'zip':  # checksums detect every change of a tensor
            assert_holds(model, original)
        else:
            state = read_plainly(changed, form)
            assert_holds(model, Checkpoint.from_state(state, 'the changed file').backbone)

    mutate()
    assert len(results) >= 150 and True in results and False in results


@st.composite
def edits(draw):
    """A function that edits the names, shapes, types and values of a state dict."""
    kinds = ['drop', 'rename', 'cut', 'turn', 'type', 'nan', 'extra', 'prefix', 'replace', 'keep']
    kind, index = draw(st.sampled_from(kinds)), draw(st.integers(0, 10**6))
    text = draw(st.text('abcdefghijklmnopqrstuvwxyz0123456789._', max_size=12))
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.uint8]
    dtype = draw(st.sampled_from(dtypes))

    def edit(state):
        state = dict(state)
        name = list(state)[index % len(state)]
        tensor = state[name]
        if kind == 'drop':
            del state[name]
        elif kind == 'rename':
            state[text] = state.pop(name)
        elif kind == 'cut':
            state[name] = tensor[:-1]
        elif kind == 'turn':
            state[name] = tensor.transpose(0, -1) if tensor.dim() else tensor
        elif kind == 'type':
            state = {k: v.to(dtype) if k >= name else v for k, v in state.items()}
        elif kind == 'nan':
            state[name] = torch.full_like(tensor, float('nan'))
        elif kind == 'extra':
            state[text or 'x'] = tensor
        elif kind == 'prefix':
            state = {f'{text}.{k}': v for k, v in state.items()}
        elif kind == 'replace':
            state[name] = state[list(state)[(index // 7) % len(state)]]
        return state

    return edit


def test_changed_contents(files, model, tmp_path):
    _, original = files
    results = []

    @settings(budget, max_examples=300, derandomize=True)
    @given(
        edit=edits(),
        second=edits(),
        layout=st.sampled_from(list(LAYOUTS)),
        form=st.sampled_from(FORMATS),
    )
    def mutate(edit, second, layout, form):
        state = second(edit(LAYOUTS[layout].from_own(original)))
        loaded = load(model, tmp_path / 'edited.pth', written(state, form))
        results.append(loaded)
        if loaded:
            found = Checkpoint.from_state(state, 'the edited file').backbone
            for name, tensor in model.state_dict().items():
                if tensor.shape != found[name].shape:  # a table for a different window size
                    assert name.endswith('bias_table')
                else:
                    assert torch.equal(tensor, found[name].float())

    mutate()
    assert len(results) >= 300 and True in results and False in results
