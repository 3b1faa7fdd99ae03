"""Where an image lies in the network's input, and maps of the network on the image.

A test pipeline resizes an image, may crop its center, and pads it on the right and bottom. Cell
(row, column) of a feature map with stride s stands for the input's pixels from s·row to s·(row + 1)
and from s·column to s·(column + 1).

H, W: height and width of an image in pixels, h, w: height and width of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..errors import UserError

Size = tuple[float, float]  # of y and x


@dataclass(frozen=True)
class Placement:
    """Position of an image in the network's input.

    Pixel y of the image lies at y · scale - crop of the input, both measured in pixels from the
    top edge; x likewise.

    Attributes:
        image_size: Height and width of the image.
        seen_size: Height and width of the resized and cropped image in the input, without padding.
        scale: Factors of height and width.
        crop: Rows and columns of the resized image that were cut off at the top and left.
    """

    image_size: tuple[int, int]
    seen_size: tuple[int, int]
    scale: Size = (1.0, 1.0)
    crop: Size = (0, 0)

    @classmethod
    def of_sample(cls, metainfo: Mapping[str, Any]) -> 'Placement':
        """Return the position according to the metainfo of a data sample.

        Raises:
            UserError: If the pipeline flips or rotates the image, or keeps no record of its size.
        """
        missing = [key for key in ('ori_shape', 'img_shape') if key not in metainfo]
        if missing:
            raise UserError(
                f"the test pipeline's samples have no {' and '.join(missing)}, so its maps cannot "
                'be placed on the image: add them to meta_keys of the last transform'
            )
        if metainfo.get('flip'):
            raise UserError(
                'the test pipeline flips images, so its maps cannot be placed on the image: '
                'remove the flip from test_dataloader.dataset.pipeline'
            )
        rows, columns = (int(size) for size in metainfo['ori_shape'][:2])
        img_shape = tuple(int(size) for size in metainfo['img_shape'][:2])
        factors = np.ravel(metainfo.get('scale_factor', 1.0)).tolist()
        scale = factors[1 % len(factors)], factors[0]  # OpenMMLab's order is x, y
        resized = [
            round(size * factor) for size, factor in zip((rows, columns), scale, strict=True)
        ]
        # Transforms keep no record of the center crop. A padded image is larger than the resized.
        top, left = (max(0, round((a - b) / 2)) for a, b in zip(resized, img_shape, strict=True))
        height, width = (min(a, b) for a, b in zip(resized, img_shape, strict=True))
        return cls((rows, columns), (height, width), scale, (top, left))

    @property
    def seen(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the network sees."""
        rows, columns = (
            np.flatnonzero((at >= 0) & (at < size))
            for at, size in zip(self._pixel_centers(), self.seen_size, strict=True)
        )
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def cell(self, x: int, y: int, stride: int) -> tuple[int, int]:
        """Return row and column of the cell of a feature map that contains a pixel of the image.

        Raises:
            UserError: If the pixel is outside of the part of the image that the network sees.
        """
        rows, columns = self.seen
        if not (rows.start <= y < rows.stop and columns.start <= x < columns.stop):
            height, width = self.image_size
            raise UserError(
                f'--token {x} {y} is outside of the part of this {width}×{height} image that the '
                f'network sees: use X from {columns.start} to {columns.stop - 1} and Y from '
                f'{rows.start} to {rows.stop - 1}'
            )
        at_y, at_x = self._pixel_centers()
        return int(at_y[y] // stride), int(at_x[x] // stride)

    def to_image(self, values: np.ndarray, stride: Size, smooth: bool = False) -> np.ndarray:
        """Bring a map to the image's resolution.

        Args:
            values: Map, (h, w) or (h, w, C).
            stride: Height and width of a cell in pixels of the input.
            smooth: Whether to interpolate between the centers of the cells. By default, all
                pixels of a cell have its value.

        Returns:
            (H, W) or (H, W, C), float32. Pixels that the network does not see are NaN.
        """
        values = np.asarray(values, np.float32)
        # in cells, from the top left corner of the map
        y, x = (at / size for at, size in zip(self._pixel_centers(), stride, strict=True))
        height, width = values.shape[:2]
        if smooth:
            # cv2's coordinates are those of the centers of cells
            rows, columns = (at.astype(np.float32) - 0.5 for at in (y, x))
            columns, rows = np.meshgrid(columns, rows)
            image = cv2.remap(
                values, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
        else:
            rows = np.clip(np.floor(y).astype(int), 0, height - 1)
            columns = np.clip(np.floor(x).astype(int), 0, width - 1)
            image = values[rows][:, columns]
        outside = np.ones(self.image_size, bool)
        outside[self.seen] = False
        image[outside] = np.nan
        return image

    def box_on_image(
        self, box: tuple[float, float, float, float], stride: int
    ) -> tuple[float, float, float, float]:
        """Return top, left, height and width in the image of a rectangle of cells."""
        y, x = (
            (start * stride + crop) / scale
            for start, crop, scale in zip(box[:2], self.crop, self.scale, strict=True)
        )
        return y, x, box[2] * stride / self.scale[0], box[3] * stride / self.scale[1]

    def _pixel_centers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return y (H,) and x (W,) in the input of the centers of the image's pixels."""
        y, x = (
            (np.arange(size) + 0.5) * scale - crop
            for size, scale, crop in zip(self.image_size, self.scale, self.crop, strict=True)
        )
        return y, x
