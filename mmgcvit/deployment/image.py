"""Input of exported graphs: an image of any size, prepared as in the config's test pipeline.

H, W: height and width of the image, h, w: of the image that the network sees, in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resizing import Step, refuse

PREPROCESSORS = ('DetDataPreprocessor', 'SegDataPreProcessor', 'ClsDataPreprocessor')


class Sizes(NamedTuple):
    """Sizes of an image, each (2,), int64.

    Attributes:
        image: H, W of the input image.
        resized: h, w after the test pipeline, without padding.
    """

    image: Tensor
    resized: Tensor

    @property
    def scale(self) -> Tensor:
        """Factors of x1, y1, x2 and y2 from the image to the resized image, (4,), float32."""
        return (self.resized / self.image).float().flip(0).repeat(2)


class ImageInput(nn.Module):
    """Prepare an image for a network: resize, normalize and pad it.

    Args:
        preprocessor: The model's data preprocessor.
        steps: What the test pipeline does with the image, see :func:`.resizing.read_steps`.

    Raises:
        UserError: If the data preprocessor cannot be exported.
    """

    def __init__(self, preprocessor: nn.Module, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.divisor, self.pad_value, converts = _read(preprocessor)
        self.flip = not converts  # pipelines load BGR, and graphs get RGB
        self.register_buffer('mean', getattr(preprocessor, 'mean', torch.zeros(3, 1, 1)))
        self.register_buffer('std', getattr(preprocessor, 'std', torch.ones(3, 1, 1)))

    def forward(self, image: Tensor) -> tuple[Tensor, Sizes]:
        """Return the network's input, (1, 3, padded h, padded w), float32, and the sizes.

        Args:
            image: RGB, (H, W, 3), uint8.
        """
        x = image.permute(2, 0, 1)[None].float()
        first = size = torch._shape_as_tensor(image)[:2]
        for step in self.steps:
            size = step.size(size)
            x = step(x, size)
        if self.flip:
            x = x.flip(1)
        x = (x - self.mean) / self.std
        below, right = ((-size) % self.divisor).unbind()
        return F.pad(x, (0, right, 0, below), value=self.pad_value), Sizes(first, size)


def _read(preprocessor: nn.Module) -> tuple[int, float, bool]:
    """Return the divisor of padded sizes, the padding, and whether BGR becomes RGB."""
    name = type(preprocessor).__name__
    if name not in PREPROCESSORS:
        raise refuse(name, ' or '.join(PREPROCESSORS))
    # the name differs between mmpretrain, mmseg and the other preprocessors of mmengine
    names = ('to_rgb', 'channel_conversion', '_channel_conversion')
    converts = next(getattr(preprocessor, each) for each in names if hasattr(preprocessor, each))
    if name != 'SegDataPreProcessor':
        return preprocessor.pad_size_divisor, preprocessor.pad_value, converts
    padding = dict(preprocessor.test_cfg or {})  # the only one that counts for single images
    divisor = padding.pop('size_divisor', None) or 1
    if padding:
        raise refuse(f'{name} with test_cfg={preprocessor.test_cfg}', 'size_divisor')
    return divisor, preprocessor.pad_val, converts
