"""Parameters and multiply-accumulates of a network, counted without computing anything.

B: batch size, H, W: sides of an image or a map, C: channels, N = w²: tokens a window.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..mmcv_ops import require_operators
from ..models.gcvit import WindowAttention

# Detection papers count so many proposals, and masks of so many of them, whatever is in an image.
NUM_PROPOSALS = 1000
NUM_MASKS = 100


@dataclass(frozen=True)
class Complexity:
    """Size and work of a network for one image.

    Attributes:
        params: Parameters of all its parts, auxiliary heads included.
        macs: Multiply-accumulates of all products as this package computes them.
        naive_linear_macs: Those of linear layers and convolutions alone, with every map padded to
            whole windows. Products of attention outside GC ViT, if there is any, are included.
        naive_macs: The same and the products of the attention in the padded windows.
    """

    params: int
    macs: int
    naive_linear_macs: int
    naive_macs: int


def build_on_meta(cfg: Config) -> nn.Module:
    """Build a config's model with shapes alone: no memory, no initial values, no files."""
    require_operators()
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with torch.device('meta'):
        return MODELS.build(cfg.model).eval()


def count_complexity(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Count parameters, and multiply-accumulates of the forward pass of one image.

    Two-stage detectors are counted with 1000 proposals in every box head and 100 in every mask
    head, as in the literature. Interpolation, pooling (RoI pooling too), norms, activations and
    what follows the heads have no products that anyone counts; auxiliary heads do not run.

    Args:
        model: On the meta device, from :func:`build_on_meta`.
        shape: H and W of the image.
    """
    padding = _PaddingCounter(model)
    counter = padding.counter
    with torch.no_grad(), counter:
        _run(model, torch.empty(1, 3, *shape, device='meta'))
    padding.remove()
    macs = counter.get_total_flops() // 2
    naive_linear = macs - padding.computed + padding.linear
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs,
        naive_linear_macs=naive_linear,
        naive_macs=naive_linear + padding.products,
    )


def _run(model: nn.Module, images: Tensor) -> None:
    """Run all that has products; RoI pooling is replaced by maps of the shape it gives."""
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        model(images, mode='tensor')
        return
    model.rpn_head(model.extract_feat(images))
    parts = [('bbox', NUM_PROPOSALS), ('mask', NUM_MASKS)]
    for part, number in parts:
        heads = _as_list(getattr(roi_head, f'{part}_head', None))
        extractors = _as_list(getattr(roi_head, f'{part}_roi_extractor', None))
        for head, extractor in zip(heads, extractors, strict=True):
            side = extractor.roi_layers[0].output_size
            head(images.new_empty(number, extractor.out_channels, *side))


def _as_list(modules: nn.Module | None) -> Iterable[nn.Module]:
    if modules is None:
        return []
    return modules if isinstance(modules, nn.ModuleList) else [modules]


class _PaddingCounter:
    """What window attention computes here, and what it would with windows padded whole."""

    def __init__(self, model: nn.Module) -> None:
        self.counter = FlopCounterMode(display=False)
        self.computed = self.linear = self.products = 0
        self._start = 0
        self._handles = []
        for module in model.modules():
            if isinstance(module, WindowAttention):
                self._handles.append(module.register_forward_pre_hook(self._before))
                self._handles.append(module.register_forward_hook(self._after))

    def _before(self, attention: WindowAttention, inputs: tuple[Tensor, ...]) -> None:
        self._start = self.counter.get_total_flops()

    def _after(
        self, attention: WindowAttention, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        self.computed += (self.counter.get_total_flops() - self._start) // 2
        x, windows, _ = inputs
        tokens = len(x) * windows.num_padded_tokens
        self.linear += tokens * (attention.qkv.weight.numel() + attention.proj.weight.numel())
        self.products += 2 * tokens * windows.window_size**2 * x.shape[-1]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
