"""Parameters and multiply-accumulates of a network.

B: batch size, H, W: height and width of an image or feature map, C: channels, N = w²: tokens per
window.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.screen import logging_from
from ..errors import UserError, describe
from ..mmcv_ops import require_operators
from ..models.gcvit import WindowAttention
from ..task import CLASSIFICATION, inner_model, require_task
from .building import build_untrained
from .samples import image_channels

# Numbers of proposals and masks that FLOPs are counted with, whatever the image, as in papers.
NUM_PROPOSALS = 1000
NUM_MASKS = 100
# mmcv classes whose operator torch's counter does not support
DEFORMABLE = ('DeformConv2d', 'ModulatedDeformConv2d')
ROI_POOLING = ('bbox_roi_extractor', 'mask_roi_extractor')


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-accumulates of a network for one image.

    Attributes:
        params: Number of parameters, including auxiliary heads.
        macs: Multiply-accumulates of all products as this package computes them.
        naive_linear_macs: Multiply-accumulates of linear layers and convolutions, with every
            feature map padded to a multiple of the window size. Products of attention outside GC
            ViT are included.
        naive_macs: ``naive_linear_macs`` plus the products of attention in the padded windows.
        has_windows: Whether the network has GC ViT's window attention. The naive numbers are only
            meaningful for such networks.
        counted: What was counted, or an empty string for the plain forward pass.
        not_called: Names of parts of the network whose forward was not called, such as auxiliary
            heads. Their products are not counted.
    """

    params: int
    macs: int
    naive_linear_macs: int
    naive_macs: int
    has_windows: bool = False
    counted: str = ''
    not_called: tuple[str, ...] = ()


def counted_shape(cfg: Config) -> tuple[int, int]:
    """Return the H and W at which papers report the complexity of a config's model.

    For classifiers with GC ViT's ``image_size``, these are the images of this size.

    Raises:
        UserError: If the model is not a detector, segmentor or classifier.
    """
    task = require_task(cfg)
    size = (inner_model(cfg).get('backbone') or {}).get('image_size')
    return (size, size) if task is CLASSIFICATION and size else task.counted_shape


def complexity_of(cfg: Config, shape: tuple[int, int]) -> Complexity:
    """Count parameters and multiply-accumulates of a config's model for one image.

    Shapes are enough for most models. If the forward pass depends on values, it is computed on the
    CPU with random weights and a random image.

    Args:
        cfg: Config of a model of mmdet, mmseg or mmpretrain.
        shape: H and W of the image.

    Raises:
        UserError: If the model cannot be built or does not run on one image.
    """
    channels = image_channels(inner_model(cfg))
    # some constructors compute values: such a model is built on the CPU and then moved to meta
    for build in (build_on_meta, lambda cfg: build_untrained(cfg).eval().to('meta')):
        with contextlib.suppress(Exception):  # the CPU gives a better error message
            return count_complexity(build(cfg), shape, channels)
    require_operators()
    try:
        model = _build_on_cpu(cfg)
    except Exception as error:
        raise UserError(
            f'the model of {cfg.filename} cannot be built here ({describe(error, 200)}): check '
            'that its packages are installed, its files exist and default_scope is set'
        ) from error
    try:
        return count_complexity(model, shape, channels)
    except Exception as error:
        raise UserError(
            f'{type(model).__name__} of {cfg.filename} does not run on a single random image '
            f'({describe(error, 200)}), so nothing can be counted: use a detector, segmentor or '
            'classifier that needs only images, or a different --shape'
        ) from error


def build_on_meta(cfg: Config) -> nn.Module:
    """Build a config's model on the meta device: no memory, no initial values, no files."""
    require_operators()
    with torch.device('meta'):
        return build_untrained(cfg).eval()


def _build_on_cpu(cfg: Config) -> nn.Module:
    """Build a config's model with random weights."""
    torch.manual_seed(0)
    with logging_from(logging.WARNING):  # init_weights logs one line per parameter
        model = build_untrained(cfg)
        with contextlib.suppress(Exception):  # some models still load files
            model.init_weights()
    return revert_sync_batchnorm(model).eval()


def count_complexity(model: nn.Module, shape: tuple[int, int], channels: int = 3) -> Complexity:
    """Count the parameters, and the multiply-accumulates of the forward pass of one image.

    Two-stage detectors are counted with 1000 proposals in every box head and 100 in every mask
    head, as in the literature. Interpolation, pooling (including RoI pooling), norms and
    activations are not counted. Auxiliary heads do not run.

    Args:
        model: Model in evaluation mode, on the meta device (see :func:`build_on_meta`) or the CPU.
        shape: H and W of the image.
        channels: Number of channels of the image.

    Raises:
        Exception: The model's last error, if every way to run it fails.
    """
    device = next(model.parameters()).device
    images = torch.rand(1, channels, *shape, device=device)
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    metainfo = dict(**shapes, scale_factor=(1.0, 1.0), flip=False, img_id=0)
    for text, run in _ways_to_run(model, images, metainfo):
        try:
            found = _count(model, run)
        except Exception as error:
            failure = error
            continue
        if device.type != 'meta':
            text = f'{text or "forward pass"}, on random values'
        return replace(found, counted=text)
    raise failure


def _ways_to_run(
    model: nn.Module, images: Tensor, metainfo: dict[str, Any]
) -> list[tuple[str, Callable[[], Any]]]:
    """Return ways to run a model, best first: what is counted, and the function to call."""
    sample = BaseDataElement(metainfo=metainfo)
    # no objects; some detectors read gt_instances
    sample.gt_instances = InstanceData(bboxes=images.new_empty(0, 4), labels=images.new_empty(0))
    samples = [sample]
    ways = []
    if _is_common_two_stage(model):
        masks = f', {NUM_MASKS} masks' if getattr(model.roi_head, 'mask_head', None) else ''
        text = f'{NUM_PROPOSALS} proposals{masks}'
        ways.append((text, partial(_run_two_stage, model, images)))
    forward = partial(model, images, mode='tensor')
    ways += [('', forward), ('', partial(forward, data_samples=samples))]
    if hasattr(model, 'encode_decode'):  # mmseg's segmentors, without sliding windows
        ways.append(('', partial(model.encode_decode, images, [metainfo])))
    return [*ways, ('inference', partial(model, images, data_samples=samples, mode='predict'))]


def _is_common_two_stage(model: nn.Module) -> bool:
    """Return whether a detector has only box and mask heads after RoI pooling."""
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        return False
    parts = dict(roi_head.named_children())
    pooling = [parts.pop(name) for name in ROI_POOLING if name in parts]
    has_layers = any(True for part in pooling for _ in part.parameters())
    return parts.keys() <= {'bbox_head', 'mask_head'} and not has_layers


def _run_two_stage(model: nn.Module, images: Tensor) -> None:
    """Run all parts with products. Empty features of the same shape replace RoI pooling."""
    maps = model.extract_feat(images)
    if getattr(model, 'rpn_head', None) is not None:  # Fast R-CNN has no RPN
        model.rpn_head(maps)
    for part, number in (('bbox', NUM_PROPOSALS), ('mask', NUM_MASKS)):
        heads = _as_list(getattr(model.roi_head, f'{part}_head', None))
        extractors = _as_list(getattr(model.roi_head, f'{part}_roi_extractor', None))
        for head, extractor in zip(heads, extractors, strict=True):
            size = extractor.roi_layers[0].output_size
            head(images.new_empty(number, extractor.out_channels, *size))


def _as_list(modules: nn.Module | None) -> Iterable[nn.Module]:
    if modules is None:
        return []
    return modules if isinstance(modules, nn.ModuleList) else [modules]


def _count(model: nn.Module, run: Callable[[], Any]) -> Complexity:
    counter = _Counter(model)
    with _visible_attention(), counter.flops:
        try:
            run()
        finally:
            counter.remove()
    macs = counter.macs()
    naive_linear = macs - counter.computed + counter.linear
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs,
        naive_linear_macs=naive_linear,
        naive_macs=naive_linear + counter.products,
        has_windows=counter.products > 0,
        not_called=tuple(counter.not_called(model)),
    )


@contextlib.contextmanager
def _visible_attention() -> Iterator[None]:
    """Disable the fused CPU kernel so that the matrix products of attention are counted."""
    fast = getattr(torch.backends, 'mha', None)  # since torch 2.3
    fast_path = fast and fast.get_fastpath_enabled()
    flash = torch.backends.cuda.flash_sdp_enabled()  # also applies to the CPU
    if fast:
        fast.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        # earlier versions skip the fast path if gradients are enabled
        with torch.set_grad_enabled(fast is None):
            yield
    finally:
        if fast:
            fast.set_fastpath_enabled(fast_path)
        torch.backends.cuda.enable_flash_sdp(flash)


class _Counter:
    """Counter of a model's products, and of window attention as if all windows were padded."""

    def __init__(self, model: nn.Module) -> None:
        self.flops = FlopCounterMode(display=False)
        self.computed = self.linear = self.products = self.deformable = 0
        self._start = 0
        self._called: set[nn.Module] = set()
        self._handles = []
        for module in model.modules():
            self._handles.append(module.register_forward_hook(self._after_any))
            if isinstance(module, WindowAttention):
                self._handles.append(module.register_forward_pre_hook(self._before))
                self._handles.append(module.register_forward_hook(self._after))
            elif any(cls.__name__ in DEFORMABLE for cls in type(module).__mro__):
                self._handles.append(module.register_forward_hook(self._after_deformable))

    def macs(self) -> int:
        """Return the multiply-accumulates so far."""
        return self.flops.get_total_flops() // 2 + self.deformable

    def not_called(self, model: nn.Module, prefix: str = '') -> Iterator[str]:
        """Yield the names of children and grandchildren with parameters that were not called."""
        for name, child in model.named_children():
            if not any(True for _ in child.parameters()):
                continue
            if self._called.isdisjoint(child.modules()):
                yield prefix + name
            elif not prefix:
                yield from self.not_called(child, f'{name}.')

    def _after_any(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._called.add(module)

    def _before(self, attention: WindowAttention, inputs: tuple[Tensor, ...]) -> None:
        self._start = self.flops.get_total_flops()

    def _after(
        self, attention: WindowAttention, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        computed = (self.flops.get_total_flops() - self._start) // 2
        x, windows, _ = inputs
        tokens = len(x) * windows.num_padded_tokens
        products = 2 * tokens * windows.window_size**2 * x.shape[-1]
        if type(attention) is WindowAttention:
            linear = tokens * (attention.qkv.weight.numel() + attention.proj.weight.numel())
        else:  # attention of variants, which computes padded windows
            linear = computed - products
        self.computed += computed
        self.linear += linear
        self.products += products

    def _after_deformable(self, conv: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.deformable += output.numel() * conv.weight[0].numel()

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
