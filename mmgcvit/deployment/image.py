"""Input of exported graphs: an image of any size, prepared as in the config's test pipeline.

H, W: height and width of the image, h, w: after resizing, in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.transforms import LoadImageFromFile
from mmcv.transforms import Resize as MMCVResize
from torch import Tensor, nn

from ..errors import UserError


class Sizes(NamedTuple):
    """Sizes of an image, each (2,), int64.

    Attributes:
        image: H, W of the input image.
        resized: h, w of the image that the network sees, without padding.
    """

    image: Tensor
    resized: Tensor

    @property
    def scale(self) -> Tensor:
        """Factors of x1, y1, x2 and y2 from the image to the resized image, (4,), float32."""
        return (self.resized / self.image).float().flip(0).repeat(2)


@dataclass(frozen=True)
class Resize:
    """Resizing as in mmcv's ``Resize``, with bilinear interpolation.

    Attributes:
        scale: Width and height of the result, or their limits in any order.
        keep_ratio: Whether the result has the aspect ratio of the image.
    """

    scale: tuple[int, int]
    keep_ratio: bool

    def size(self, image: Tensor) -> Tensor:
        """Return the new height and width, (2,), int64, with the rounding of mmcv."""
        if not self.keep_ratio:
            return torch.tensor(self.scale[::-1])
        image = image.double()  # as Python's floats
        factor = torch.minimum(max(self.scale) / image.max(), min(self.scale) / image.min())
        return (image * factor + 0.5).floor().long()


class ImageInput(nn.Module):
    """Prepare an image for a network: resize, normalize and pad it.

    OpenCV resizes images of 8-bit integers in fixed-point arithmetic. Here, pixels are
    interpolated in float32 and rounded, which differs by at most one of 255 levels.

    Args:
        preprocessor: The model's data preprocessor.
        resize: Resizing of the test pipeline, or None.

    Raises:
        UserError: If the data preprocessor does something that graphs do not.
    """

    def __init__(self, preprocessor: nn.Module, resize: Resize | None) -> None:
        super().__init__()
        self.resize = resize
        self.divisor, self.pad_value, converts = _read_preprocessor(preprocessor)
        self.flip = not converts  # pipelines load BGR, and graphs get RGB
        zeros, ones = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        self.register_buffer('mean', getattr(preprocessor, 'mean', zeros))
        self.register_buffer('std', getattr(preprocessor, 'std', ones))

    def forward(self, image: Tensor) -> tuple[Tensor, Sizes]:
        """Return the network's input, (1, 3, padded h, padded w), float32, and the sizes.

        Args:
            image: RGB, (H, W, 3), uint8.
        """
        x = image.permute(2, 0, 1)[None].float()
        size = resized = torch._shape_as_tensor(image)[:2]
        if self.resize:
            resized = self.resize.size(size)
            x = interpolate(x, resized).round()
        if self.flip:
            x = x.flip(1)
        x = (x - self.mean) / self.std
        below, right = ((-resized) % self.divisor).unbind()
        return F.pad(x, (0, right, 0, below), value=self.pad_value), Sizes(size, resized)


def interpolate(x: Tensor, size: Tensor, align_corners: bool = False) -> Tensor:
    """Resize maps (1, C, H, W) bilinearly to a size (2,)."""
    return F.interpolate(x, tuple(size.unbind()), mode='bilinear', align_corners=align_corners)


def read_resize(pipeline: Sequence[object]) -> Resize | None:
    """Return the resizing of a test pipeline, or None if it does not resize.

    Raises:
        UserError: If the pipeline has a transform that graphs do not contain.
    """
    found = None
    for transform in pipeline:
        name = type(transform).__name__
        if isinstance(transform, LoadImageFromFile):
            if transform.color_type != 'color' or transform.to_float32:
                raise _refuse(
                    f'{name} with color_type={transform.color_type!r}, '
                    f'to_float32={transform.to_float32}',
                    'an 8-bit color image',
                )
        elif isinstance(transform, MMCVResize) and type(transform)._resize_img is (
            MMCVResize._resize_img
        ):
            if found or not transform.scale:
                raise _refuse(f'{name} with scale_factor, or repeatedly', 'one Resize with scale')
            if (transform.backend, transform.interpolation) != ('cv2', 'bilinear'):
                raise _refuse(
                    f'{name} with backend={transform.backend!r}, '
                    f'interpolation={transform.interpolation!r}',
                    "backend='cv2', interpolation='bilinear'",
                )
            found = Resize(tuple(transform.scale), transform.keep_ratio)
        elif not name.startswith('Pack'):
            raise _refuse(name, 'Resize')
    return found


def _read_preprocessor(preprocessor: nn.Module) -> tuple[int, float, bool]:
    """Return the divisor of padded sizes, the padding, and whether BGR becomes RGB."""
    name = type(preprocessor).__name__
    if name == 'SegDataPreProcessor':
        # it pads single images only with these settings
        padding = dict(preprocessor.test_cfg or {})
        divisor = padding.pop('size_divisor', None) or 1
        if padding:
            raise _refuse(f'{name} with test_cfg={preprocessor.test_cfg}', 'size_divisor')
        return divisor, preprocessor.pad_val, preprocessor.channel_conversion
    if name not in ('DetDataPreprocessor', 'ImgDataPreprocessor'):
        raise _refuse(name, 'DetDataPreprocessor or SegDataPreProcessor')
    return (
        preprocessor.pad_size_divisor,
        preprocessor.pad_value,
        preprocessor._channel_conversion,
    )


def _refuse(found: str, allowed: str) -> UserError:
    return UserError(
        f'{found} cannot be exported: use {allowed} in the test pipeline and the data_preprocessor'
    )
