"""Window attention region by region, with plain operations or PyTorch's fused attention.

B: batch size, L: tokens of a feature map in window order, C: channels, w: window size, h: heads,
d = C/h: channels per head, k: 3 if query, key and value are projected from the tokens, 2 if only
key and value are, nW: windows of a region per feature map, n: tokens per window, m: keys per
window, which is n, or n + 1 with the extra key that represents the padding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph_mode import is_exporting
from .position_bias import position_biases
from .windows import PaddedWindows, Region, Windows, join

# query (B·nW, h, n, d), key and value (B·nW, h, m, d), bias (h, n, m), dropout → (B·nW, h, n, d)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


class Inputs(NamedTuple):
    """Inputs of window attention, see :func:`.window_attention`."""

    qkv: Tensor
    windows: Windows
    bias_table: Tensor
    global_query: Tensor | None
    padding: Tensor | None
    dropout: float = 0.0

    @property
    def qkv_dims(self) -> tuple[int, int, int]:
        """Number of projections k, number of heads h and channels per head d."""
        k, h = 3 if self.global_query is None else 2, self.bias_table.shape[1]
        return k, h, self.qkv.shape[-1] // (k * h)


def attend_by_region(
    inputs: Inputs, attend: Attend, biases: Iterable[Tensor] | None = None
) -> Tensor:
    """Return the attention of all regions, (B, L, C).

    Args:
        inputs: Inputs of window attention.
        attend: Function that computes the attention of windows.
        biases: Results of :func:`.position_biases`, if already computed.
    """
    out = []
    for region, query, key, value, bias in split_regions(inputs, biases):
        attended = attend(query, key, value, bias, inputs.dropout).transpose(1, 2)
        if is_exporting():
            # Attention of the ONNX exporter returns another memory layout than PyTorch's, so the
            # exporter would find a view in the graph where it needs a copy.
            attended = attended.clone(memory_format=torch.contiguous_format)
        out.append(attended.flatten(2).unflatten(0, (-1, region.num_windows)).flatten(1, 2))
    return join(out, 1)


def attend_padded(inputs: Inputs, attend: Callable[[Inputs], Tensor]) -> Tensor:
    """Return the attention of all windows, (B, L, C), computed with padded windows.

    This is how the published network computes attention. It takes more arithmetic than
    :func:`attend_by_region`, but less than half of the kernel launches, which take longer than the
    arithmetic on a GPU.

    Args:
        inputs: Inputs of window attention.
        attend: Function that computes the attention of inputs with one region and no padding.
    """
    windows = inputs.windows
    if not windows.has_padding:
        return attend(inputs)
    padded = PaddedWindows(windows.height, windows.width, windows.window_size)
    qkv = windows.pad(inputs.qkv, inputs.padding)
    return windows.crop(attend(inputs._replace(qkv=qkv, windows=padded)))


def split_regions(
    inputs: Inputs, biases: Iterable[Tensor] | None = None
) -> Iterator[tuple[Region, Tensor, Tensor, Tensor, Tensor]]:
    """Yield each region with its query, key, value and bias in the shapes of :data:`Attend`."""
    windows = inputs.windows
    if biases is None:
        biases = position_biases(inputs.bias_table, windows, inputs.qkv.dtype)
    parts = zip(windows.regions, windows.split(inputs.qkv), biases, strict=True)
    for region, part, bias in parts:
        query, key, value = (x.flatten(0, 1) for x in heads_of(part, region, inputs))
        if windows.is_partial(region):
            key, value = map(append_token, (key, value), padding_by_head(inputs))
        yield region, query, key, value, bias


def heads_of(part: Tensor, region: Region, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value of a region as views: (B, nW·n, k·C) → (B, nW, h, n, d) each.

    A global query is expanded over the windows.
    """
    part = part.unflatten(1, (region.num_windows, region.num_tokens)).unflatten(-1, inputs.qkv_dims)
    *query, key, value = part.permute(3, 0, 1, 4, 2, 5).unbind()
    if inputs.global_query is None:
        return query[0], key, value
    w = inputs.windows.window_size
    real = inputs.global_query.unflatten(1, (w, w))[:, : region.height, : region.width]
    real = real.flatten(1, 2).unflatten(-1, inputs.qkv_dims[1:]).transpose(1, 2)
    return real[:, None].expand(-1, region.num_windows, -1, -1, -1), key, value


def padding_by_head(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the key and value of a padded token, (1, h, d) each."""
    assert inputs.padding is not None  # only called for windows with padding
    *_, key, value = inputs.padding.unflatten(-1, inputs.qkv_dims).unbind(1)
    return key, value


def append_token(x: Tensor, token: Tensor) -> Tensor:
    """Append a token to each window: (windows, h, n, d), (1, h, d) → (windows, h, n + 1, d)."""
    return torch.cat([x, token.transpose(0, 1).expand(x.shape[0], -1, -1, -1)], 2)


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """Compute attention with PyTorch's fused kernel for the device, if there is one."""
    if query.is_cuda:
        bias = bias_with_gradient(query, key, value, bias)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias[None], dropout_p=dropout
    )


def bias_with_gradient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return a bias that requires a gradient if the query, key or value does.

    PyTorch then does not use cuDNN's attention, which does not compute gradients of the bias. On an
    H100 with torch 2.11, cuDNN's other gradients were NaN for windows of 24×24 tokens if all scores
    of a query were low (pytorch#196678).
    """
    learning = next((x for x in (query, key, value) if x.requires_grad), None)
    if bias.requires_grad or learning is None:
        return bias
    # A part without elements has no values that may not be finite. Zeros align the rows, as in
    # position_biases.
    *size, m = bias.shape
    parts = [bias, learning[..., :0].reshape(*size, 0), bias.new_zeros(*size, -m % 8)]
    return torch.cat(parts, -1)[..., :m]


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """Compute attention with operations that support derivatives of any order."""
    return F.dropout(attention_weights(query, key, bias), dropout) @ value


def attention_weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(q kᵀ/√d + b)."""
    return ((query * query.shape[-1] ** -0.5) @ key.mT + bias).softmax(-1)
