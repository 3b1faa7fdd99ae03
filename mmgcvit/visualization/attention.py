"""Global queries, attention and outputs of a GC ViT, recorded while it processes an image.

Forward hooks take them from the modules of the network, so they belong to the computation that ran.
The attention weights of a block are reduced at once: at 800×1280, one block has up to 300 MB per
two heads.

A window has w² keys. Where the feature map ends within a window, the network pads it, and the keys
of padded tokens also receive attention. So of every query, the weights of the keys in the feature
map plus the weight of the padding is 1.

B: batch size, H, W: height and width of a feature map, C: channels, L: tokens in window order,
w: window size, h: heads, n: tokens per window, m: keys per window (n, or n + 1 with padding),
nW: windows.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import GCViT

LOCAL, GLOBAL = 'local', 'global'


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one block in the first image of a batch.

    Attributes:
        stage: Index of the stage, from 0.
        block: Index of the block in its stage, from 0.
        kind: 'local' or 'global'.
        window_size: Window size w.
        weights: Attention that each token receives, (h, H, W). Without a token: the mean over the
            queries of its window, so that the weights of a window and its padding add up to 1.
            With a token: the weights of its query, which are 0 outside of its window.
        padding: Attention that goes to padded tokens: for each token, that of its window,
            (h, H, W); with a token, that of its query, (h,).
        token: Row and column of the token in the feature map.
        window: First row, first column, height and width of the token's window, without padding.
    """

    stage: int
    block: int
    kind: str
    window_size: int
    weights: Tensor
    padding: Tensor
    token: tuple[int, int] | None = None
    window: tuple[int, int, int, int] | None = None

    @property
    def stride(self) -> int:
        """Stride of the feature map."""
        return 4 * 2**self.stage

    @property
    def name(self) -> str:
        """Name for files, such as 'stage2_block3_global'."""
        return f'stage{self.stage}_block{self.block}_{self.kind}'


@dataclass
class Recording:
    """What :func:`record` takes from a forward pass. Feature maps have a batch dimension.

    Attributes:
        input_size: Height and width of the backbone's input, with padding.
        queries: Global query of each stage as a map, (w, w, C).
        attention: Attention of the chosen blocks, in the order of the network.
        outputs: Outputs of the backbone.
    """

    input_size: tuple[int, int] = (0, 0)
    queries: dict[int, Tensor] = field(default_factory=dict)
    attention: list[AttentionMap] = field(default_factory=list)
    outputs: tuple[Tensor, ...] = ()


def find_backbone(model: nn.Module) -> GCViT:
    """Return the first GC ViT in a model.

    Raises:
        UserError: If there is none.
    """
    backbone = next((each for each in model.modules() if isinstance(each, GCViT)), None)
    if backbone is None:
        raise UserError(
            f'the {type(model).__name__} of this config has no GC ViT: pass a config whose '
            "backbone has type='mmgcvit.GCViT'"
        )
    return backbone


def choose_blocks(
    backbone: GCViT, stage: int | None = None, block: int | None = None, kind: str | None = None
) -> list[tuple[int, int]]:
    """Return the stage and the block of the attention maps to show.

    Args:
        backbone: The network.
        stage: Index of a stage. None for all stages.
        block: Index of a block in this stage. None for the last block of each kind.
        kind: 'local' or 'global'. None for both.

    Raises:
        UserError: If there is no such stage or block, or it is of the other kind.
    """
    stages = range(len(backbone.stages))
    if stage is not None and stage not in stages:
        raise UserError(
            f'--stage {stage} is not in this network: choose from {choices(stages)}, counted '
            'from 0 as in out_indices'
        )
    if block is None:
        chosen = []
        for i in stages if stage is None else [stage]:
            last = {_kind(each): j for j, each in enumerate(backbone.stages[i].blocks)}
            chosen += sorted((i, j) for name, j in last.items() if kind in (None, name))
        if not chosen:
            where = 'this network' if stage is None else f'stage {stage}'
            raise UserError(f'{where} has no {kind} attention: leave out --type')
        return chosen
    if stage is None:
        raise UserError(f'--block {block} needs --stage: choose from {choices(stages)}')
    blocks = backbone.stages[stage].blocks
    if block not in range(len(blocks)):
        raise UserError(
            f'--block {block} is not in stage {stage}: choose from {choices(range(len(blocks)))}'
        )
    if kind not in (None, _kind(blocks[block])):
        same = [j for j, each in enumerate(blocks) if _kind(each) == kind]
        has = f'the {kind} blocks are {choices(same)}' if same else f'it has no {kind} block'
        raise UserError(
            f'--type {kind} is not allowed: block {block} of stage {stage} is '
            f'{_kind(blocks[block])}, {has}'
        )
    return [(stage, block)]


@contextmanager
def record(
    backbone: GCViT,
    blocks: Iterable[tuple[int, int]] = (),
    token: tuple[float, float] | None = None,
) -> Iterator[Recording]:
    """Record the first forward pass of a backbone within a ``with`` block.

    Args:
        backbone: The network.
        blocks: Stage and block of each attention map.
        token: y and x of the token in pixels of the network's input. None for the mean over all
            queries.

    Yields:
        The recording, which is complete when the backbone has run.
    """
    recording = Recording()

    def on_stage(stage: int) -> Any:
        def hook(generator: nn.Module, args: tuple, query: Tensor) -> None:
            size = generator.window_size, generator.window_size
            recording.queries.setdefault(stage, query[0].detach().unflatten(0, size))

        return hook

    def on_attention(stage: int, block: int) -> Any:
        def hook(attention: nn.Module, args: tuple, output: Tensor) -> None:
            if recording.outputs:  # the backbone runs again
                return
            with torch.no_grad():
                recording.attention.append(_attention_map(attention, args, stage, block, token))

        return hook

    def on_end(backbone: GCViT, args: tuple, outputs: tuple[Tensor, ...]) -> None:
        if not recording.outputs:
            recording.input_size = tuple(args[0].shape[2:])
            recording.outputs = tuple(each.detach() for each in outputs)

    with ExitStack() as hooks:
        for i, stage in enumerate(backbone.stages):
            if stage.query_generator is not None:
                handle = stage.query_generator.register_forward_hook(on_stage(i))
                hooks.callback(handle.remove)
        for i, j in blocks:
            handle = backbone.stages[i].blocks[j].attn.register_forward_hook(on_attention(i, j))
            hooks.callback(handle.remove)
        hooks.callback(backbone.register_forward_hook(on_end).remove)
        yield recording


def _attention_map(
    attention: nn.Module, args: tuple, stage: int, block: int, token: tuple[float, float] | None
) -> AttentionMap:
    """Reduce the attention weights of a module that was called with ``args``."""
    windows = args[1]
    probabilities = attention.attention_probabilities(*args)
    if token is None:
        place: tuple = ()
        weights, padding = _received(probabilities, windows)
    else:
        stride = 4 * 2**stage
        row, column = int(token[0] // stride), int(token[1] // stride)
        weights, padding, window = _of_token(probabilities, windows, row, column)
        place = (row, column), window
    kind = GLOBAL if attention.is_global else LOCAL
    return AttentionMap(stage, block, kind, windows.window_size, weights, padding, *place)


def _received(probabilities: list[tuple[Any, Tensor]], windows: Any) -> tuple[Tensor, Tensor]:
    """Return the mean weights of the keys and of the padding, (h, H, W) each."""
    weights, padding = [], []
    for region, each in probabilities:
        mean = each.mean(3).transpose(2, 3)  # (B, nW, m, h)
        n = region.num_tokens
        weights.append(mean[:, :, :n].flatten(1, 2))
        # the sum is 0 without a key for the padding
        rest = mean[:, :, n:].sum(2, keepdim=True)
        padding.append(rest.expand(-1, -1, n, -1).flatten(1, 2))
    merged = (windows.merge(torch.cat(parts, 1))[0] for parts in (weights, padding))
    return tuple(each.permute(2, 0, 1) for each in merged)


def _of_token(
    probabilities: list[tuple[Any, Tensor]], windows: Any, row: int, column: int
) -> tuple[Tensor, Tensor, tuple[int, int, int, int]]:
    """Return the weights (h, H, W), the padding (h,) and the window of a token's query."""
    for region, each in probabilities:
        y, x = divmod(row - region.top, region.height), divmod(column - region.left, region.width)
        if not (0 <= y[0] < region.rows and 0 <= x[0] < region.columns):
            continue
        top, left = region.top + y[0] * region.height, region.left + x[0] * region.width
        window = y[0] * region.columns + x[0]
        query = y[1] * region.width + x[1]
        found = each[0, window, :, query]  # (h, m)
        n = region.num_tokens
        weights = found.new_zeros(len(found), windows.height, windows.width)
        inside = weights[:, top : top + region.height, left : left + region.width]
        inside.copy_(found[:, :n].unflatten(1, (region.height, region.width)))
        return weights, found[:, n:].sum(1), (top, left, region.height, region.width)
    raise AssertionError(f'no window contains the token ({row}, {column})')


def _kind(block: nn.Module) -> str:
    return GLOBAL if block.attn.is_global else LOCAL


def choices(numbers: Iterable[int]) -> str:
    """Return the allowed values for an error message."""
    return ', '.join(map(str, numbers))
