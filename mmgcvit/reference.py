"""Reference implementation of GC ViT with plain operations.

It is meant for reading, and for comparison with :class:`mmgcvit.GCViT`. The code follows the
paper's equations: windows are padded, an index table gives the position bias, and attention weights
are materialized. It shares no code with the rest of the package and takes weights in the published
(NVIDIA) layout. Section, equation and figure numbers are those of :mod:`mmgcvit.models.gcvit`.

B: batch size, H, W: height and width of a feature map, C: channels, w: window size, N = w²: tokens
per window, h: heads.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def gcvit(
    weights: Weights,
    images: Tensor,
    num_heads: Sequence[int],
    windows: Sequence[int],
    pools: Sequence[int],
) -> list[Tensor]:
    """Return the feature maps of the four stages (section 2, figure 2).

    Args:
        weights: Tensors in the published layout, with ``norm0`` to ``norm3``.
        images: Images, (B, 3, H, W).
        num_heads: Number of heads of each stage.
        windows: Window size w of each stage.
        pools: Number of poolings in the query generator of each stage.

    Returns:
        The feature map of each stage, (B, C, H, W).
    """
    x = F.conv2d(images, *_layer(weights, 'patch_embed.proj'), stride=2, padding=1)
    x = _downsample(weights, 'patch_embed.conv_down', x.permute(0, 2, 3, 1))
    outputs = []
    for i in range(4):
        level = f'levels.{i}'
        depth = 1 + max(int(n.split('.')[3]) for n in weights if n.startswith(f'{level}.blocks.'))
        query = _global_query(weights, f'{level}.q_global_gen', x, windows[i], pools[i])
        for j in range(depth):
            block_query = query if j % 2 else None
            x = _block(weights, f'{level}.blocks.{j}', x, num_heads[i], windows[i], block_query)
        outputs.append(_norm(weights, f'norm{i}', x).permute(0, 3, 1, 2))
        if i < 3:
            x = _downsample(weights, f'{level}.downsample', x)
    return outputs


def _layer(weights: Weights, name: str) -> tuple[Tensor, Tensor | None]:
    return weights[f'{name}.weight'], weights.get(f'{name}.bias')


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *_layer(weights, name), eps=1e-5)


def _mbconv(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Equation 1: (B, C, H, W) → (B, C, H, W)."""
    y = F.gelu(F.conv2d(x, weights[f'{name}.conv.0.weight'], padding=1, groups=x.shape[1]))
    gate = F.gelu(y.mean((2, 3)) @ weights[f'{name}.conv.2.fc.0.weight'].t())
    gate = torch.sigmoid(gate @ weights[f'{name}.conv.2.fc.2.weight'].t())
    return x + F.conv2d(y * gate[:, :, None, None], weights[f'{name}.conv.3.weight'])


def _downsample(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Figure 3: (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
    x = _mbconv(weights, name, _norm(weights, f'{name}.norm1', x).permute(0, 3, 1, 2))
    x = F.conv2d(x, weights[f'{name}.reduction.weight'], stride=2, padding=1)
    return _norm(weights, f'{name}.norm2', x.permute(0, 2, 3, 1))


def _global_query(weights: Weights, name: str, x: Tensor, window: int, pools: int) -> Tensor | None:
    """Section 2.1, equation 2: (B, H, W, C) → (B, N, C)."""
    if f'{name}.to_q_global.0.conv.0.weight' not in weights:
        return None
    x = x.permute(0, 3, 1, 2)
    for k in range(max(pools, 1)):
        x = _mbconv(weights, f'{name}.to_q_global.{k}', x)
        if pools > 0:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
    if x.shape[2:] != (window, window):
        x = F.interpolate(x, (window, window), mode='bicubic', align_corners=False)
    return x.flatten(2).transpose(1, 2)


def _block(
    weights: Weights, name: str, x: Tensor, heads: int, window: int, query: Tensor | None
) -> Tensor:
    """Figure 6: (B, H, W, C) → (B, H, W, C)."""
    attention = _attention(
        weights, f'{name}.attn', _norm(weights, f'{name}.norm1', x), heads, window, query
    )
    x = x + weights.get(f'{name}.gamma1', 1) * attention
    hidden = F.linear(_norm(weights, f'{name}.norm2', x), *_layer(weights, f'{name}.mlp.fc1'))
    branch = F.linear(F.gelu(hidden), *_layer(weights, f'{name}.mlp.fc2'))
    return x + weights.get(f'{name}.gamma2', 1) * branch


def _attention(
    weights: Weights, name: str, x: Tensor, heads: int, window: int, query: Tensor | None
) -> Tensor:
    """Section 2.2, equations 3 to 6: (B, H, W, C), query (B, N, C) or None → (B, H, W, C)."""
    B, H, W, C = x.shape
    rows, columns, N = math.ceil(H / window), math.ceil(W / window), window**2
    x = F.pad(x, (0, 0, 0, columns * window - W, 0, rows * window - H))
    x = x.reshape(B, rows, window, columns, window, C).transpose(2, 3).reshape(-1, N, C)
    parts = list(F.linear(x, *_layer(weights, f'{name}.qkv')).split(C, dim=-1))
    if query is not None:
        parts.insert(0, query.repeat_interleave(rows * columns, 0))
    q, k, v = (t.reshape(len(x), N, heads, C // heads).transpose(1, 2) for t in parts)
    bias = _position_bias(weights[f'{name}.relative_position_bias_table'], window)
    scores = (q / math.sqrt(C // heads)) @ k.transpose(-2, -1) + bias
    x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, N, C)
    x = F.linear(x, *_layer(weights, f'{name}.proj'))
    x = x.reshape(B, rows, columns, window, window, C).transpose(2, 3)
    return x.reshape(B, rows * window, columns * window, C)[:, :H, :W]


def _position_bias(table: Tensor, window: int) -> Tensor:
    """Section 2.2: ((2w-1)², h) → (h, N, N), the bias b of equation 6 between queries and keys."""
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(window)] * 2, indexing='ij'))
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return table[rows * (2 * window - 1) + columns].permute(2, 0, 1)
