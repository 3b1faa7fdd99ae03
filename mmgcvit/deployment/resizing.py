"""Resizing and cropping of images in exported graphs, as in the transforms of test pipelines.

H, W: height and width of the image, h, w: after the transform, in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform, CenterCrop, LoadImageFromFile
from mmcv.transforms import Resize as MMCVResize
from torch import Tensor

from ..errors import UserError


class Step(Protocol):
    """A transform of an image."""

    def size(self, image: Tensor) -> Tensor:
        """Return the height and width of the result, (2,), int64, for those of an image."""

    def __call__(self, x: Tensor, size: Tensor) -> Tensor:
        """Transform an image: (1, 3, H, W) → (1, 3, h, w), whole numbers from 0 to 255 as float32.

        Args:
            x: The image.
            size: h, w.
        """


@dataclass(frozen=True)
class Resize:
    """mmcv's ``Resize`` with OpenCV and bilinear interpolation.

    OpenCV resizes images of 8-bit integers in fixed-point arithmetic. Here, pixels are
    interpolated in float32 and rounded, which differs by at most one of 255 levels.

    Attributes:
        scale: Width and height of the result, or their limits in any order.
        keep_ratio: Whether the result has the aspect ratio of the image.
    """

    scale: tuple[int, int]
    keep_ratio: bool

    def size(self, image: Tensor) -> Tensor:
        if not self.keep_ratio:
            return torch.tensor(self.scale[::-1])
        image = image.double()  # as Python's floats
        factor = torch.minimum(max(self.scale) / image.max(), min(self.scale) / image.min())
        # at least 1, where OpenCV fails: for example a line of 1×2000 pixels at (1333, 800)
        return (image * factor + 0.5).floor().long().clamp(min=1)

    def __call__(self, x: Tensor, size: Tensor) -> Tensor:
        return interpolate(x, size).round()


@dataclass(frozen=True)
class ResizeShortEdge:
    """mmpretrain's ``ResizeEdge`` of the short edge with Pillow and bicubic interpolation.

    Attributes:
        length: Length of the short edge.
    """

    length: int

    def size(self, image: Tensor) -> Tensor:
        return torch.div(self.length * image, image.min(), rounding_mode='floor')

    def __call__(self, x: Tensor, size: Tensor) -> Tensor:
        # Pillow rounds after each of the two passes
        (height, width), old = size.unbind(), torch._shape_as_tensor(x)[2:]
        x = (x @ _bicubic(old[1], width).T).round().clamp(0, 255)
        return (_bicubic(old[0], height) @ x).round().clamp(0, 255)


@dataclass(frozen=True)
class Crop:
    """mmcv's ``CenterCrop``.

    Attributes:
        limits: Height and width of the result. It is smaller if the image is.
    """

    limits: tuple[int, int]

    def size(self, image: Tensor) -> Tensor:
        return torch.minimum(image, torch.tensor(self.limits))

    def __call__(self, x: Tensor, size: Tensor) -> Tensor:
        old = torch._shape_as_tensor(x)[2:]
        top, left = ((old - size) / 2).round().long().unbind()
        height, width = size.unbind()
        return x[:, :, top : top + height, left : left + width]


def interpolate(x: Tensor, size: Tensor, align_corners: bool = False) -> Tensor:
    """Resize maps (1, C, H, W) bilinearly to a size (2,)."""
    return F.interpolate(x, tuple(size.unbind()), mode='bilinear', align_corners=align_corners)


def _bicubic(old: Tensor, new: Tensor) -> Tensor:
    """Return the weights of the old pixels of an axis in each new one, (new, old).

    When an image shrinks, Pillow widens the kernel so that all pixels count.
    """
    ratio = old / new
    center = (torch.arange(new) + 0.5) * ratio
    distance = (torch.arange(old) + 0.5 - center[:, None]).abs() / ratio.clamp(min=1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, far) * (distance < 2)
    return weights / weights.sum(1, keepdim=True)


def read_steps(pipeline: Sequence[BaseTransform]) -> list[Step]:
    """Return the steps of a test pipeline that change the image.

    Raises:
        UserError: If the pipeline has a transform that cannot be exported.
    """
    steps: list[Step] = []
    for transform in pipeline:
        name = type(transform).__name__
        if isinstance(transform, LoadImageFromFile):
            if transform.color_type != 'color' or transform.to_float32:
                raise refuse(
                    f'{name} with color_type={transform.color_type!r}, '
                    f'to_float32={transform.to_float32}',
                    "color_type='color', to_float32=False",
                )
        elif name == 'ResizeEdge':
            wanted = dict(edge='short', backend='pillow', interpolation='bicubic')
            _require(transform, wanted)
            steps.append(ResizeShortEdge(transform.scale))
        elif getattr(type(transform), '_resize_img', None) is MMCVResize._resize_img:
            if not transform.scale:
                raise refuse(f'{name} with scale_factor', 'scale')
            _require(transform, dict(backend='cv2', interpolation='bilinear'))
            steps.append(Resize(tuple(transform.scale), transform.keep_ratio))
        elif type(transform) is CenterCrop:
            _require(transform, dict(auto_pad=False))
            steps.append(Crop(tuple(transform.crop_size[::-1])))
        elif not name.startswith('Pack'):
            raise refuse(name, 'Resize')
    return steps


def _require(transform: BaseTransform, settings: Mapping[str, Any]) -> None:
    found = {name: getattr(transform, name) for name in settings}
    if found != settings:
        texts = (', '.join(f'{k}={v!r}' for k, v in each.items()) for each in (found, settings))
        raise refuse(f'{type(transform).__name__} with {next(texts)}', next(texts))


def refuse(found: str, allowed: str) -> UserError:
    """Return the error for a part of the preprocessing that cannot be exported."""
    return UserError(
        f'{found} cannot be exported: use {allowed} in the test pipeline and the data_preprocessor'
    )
