"""Synthetic images of overlapping circles, rectangles and triangles, with their masks.

H, W: height and width of an image in pixels. Pixel (row, column) covers [column, column + 1) x
[row, row + 1).
"""

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('circle', 'rectangle', 'triangle')

SIZE_RANGE = (200, 480)  # height and width of images in pixels, inclusive
MAX_SHAPES = 4
# radius of the circle around a shape, relative to the square root of the image's area, and range of
# its center, relative to height and width: of several shapes, and of a single one
RADII, CENTERS = (0.14, 0.28), (0.12, 0.88)
LARGE_RADII, MIDDLE = (0.28, 0.42), (0.35, 0.65)
MIN_VISIBLE_SIZE = 40  # height and width of the box around a shape's largest visible part
MIN_VISIBLE_FRACTION = 0.65  # of a shape's area, including its area outside of the image
MIN_PART_AREA = 48  # pixels; smaller visible parts are drawn but not annotated in COCO


@dataclass(frozen=True)
class Shape:
    """A circle, or a convex polygon with its circumscribed circle.

    Attributes:
        name (str): One of ``CLASSES``.
        center (np.ndarray): x and y of the circle's center in pixels, (2,).
        radius (float): Radius of the circle in pixels.
        corners (np.ndarray | None): x and y of the polygon's corners, clockwise on the screen,
            (3, 2) or (4, 2). None for a circle.
    """

    name: str
    center: np.ndarray
    radius: float
    corners: np.ndarray | None = None

    @property
    def area(self) -> float:
        """Area in square pixels, including the part outside of the image."""
        if self.corners is None:
            return math.pi * self.radius**2
        x, y = self.corners.T
        return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))

    def depth(self, height: int, width: int) -> np.ndarray:
        """Return how deep each pixel's center lies inside the shape, negative outside, (H, W)."""
        x, y = _grid(height, width)
        if self.corners is None:
            return self.radius - np.hypot(x - float(self.center[0]), y - float(self.center[1]))
        depth = np.full((height, width), np.inf, np.float32)
        # with Python floats, the arrays stay float32 in both NumPy 1 and 2
        corners = self.corners.tolist()
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            edge = ((y - y0) * (x1 - x0) - (x - x0) * (y1 - y0)) / math.hypot(x1 - x0, y1 - y0)
            np.minimum(depth, edge, out=depth)
        return depth


@dataclass(frozen=True)
class Scene:
    """An image with its shapes.

    Attributes:
        image (np.ndarray): BGR, uint8, (H, W, 3).
        shapes (list[Shape]): Shapes from back to front.
        visible (list[np.ndarray]): Mask of the visible pixels of each shape, bool, (H, W).
    """

    image: np.ndarray
    shapes: list[Shape]
    visible: list[np.ndarray]


def draw_scene(seed: int, part: int, index: int, only: str | None = None) -> Scene:
    """Draw one image.

    Args:
        seed: Seed of the dataset.
        part: Number of the split, which is part of the seed.
        index: Number of the image, counted from 1.
        only: Class of a single large shape. By default, there are several shapes of any class.

    Returns:
        The image with its shapes and masks.
    """
    rng = np.random.Generator(np.random.PCG64([seed, part, index]))
    height = width = 0
    while height == width:
        height, width = rng.integers(SIZE_RANGE[0], SIZE_RANGE[1] + 1, 2).tolist()
    shapes, visible = _place(rng, height, width, only)

    # The background is dull; shapes are vivid with less texture. This lets the smallest
    # detector learn to distinguish them within minutes. The hue does not depend on the class.
    canvas = _fill(rng, height, width, rng.uniform(60, 190) + rng.uniform(-12, 12, 3))
    hues: list[float] = []
    for shape in shapes:
        hues.append(_new_hue(rng, hues))
        depth = shape.depth(height, width)
        if rng.random() < 0.4:  # a soft shadow on the shapes below
            shift = np.array([[1, 0, rng.uniform(-6, 6)], [0, 1, rng.uniform(2, 8)]], np.float32)
            shade = cv2.warpAffine((depth > 0).astype(np.float32), shift, (width, height))
            canvas *= 1 - 0.45 * cv2.GaussianBlur(shade, (0, 0), 4)[..., None]
        fill = _fill(rng, height, width, _vivid(rng, hues[-1]), contrast=0.4)
        if rng.random() < 0.25:  # a darker rim
            fill[depth < rng.uniform(1.5, 4)] *= 0.55
        canvas += np.clip(depth + 0.5, 0, 1)[..., None] * (fill - canvas)
    canvas += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(2, 7))
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), shapes, visible)


def _place(
    rng: np.random.Generator, height: int, width: int, only: str | None
) -> tuple[list[Shape], list[np.ndarray]]:
    """Place shapes. Return them from back to front with their masks. All are well visible."""
    num_shapes = 1 if only else int(rng.integers(1, MAX_SHAPES + 1))
    shapes: list[Shape] = []
    visible: list[np.ndarray] = []
    attempts = 0
    while not shapes or (len(shapes) < num_shapes and attempts < 12 * num_shapes):
        attempts += 1
        shape = _random_shape(rng, height, width, shapes, only)
        inside = shape.depth(height, width) > 0
        left = [mask & ~inside for mask in visible]
        changed = [
            _well_visible(after, other.area)
            for other, before, after in zip(shapes, visible, left, strict=True)
            if (before & inside).any()
        ]
        if all(changed) and _well_visible(inside, shape.area):
            shapes.append(shape)
            visible = [*left, inside]
    return shapes, visible


def _random_shape(
    rng: np.random.Generator, height: int, width: int, others: list[Shape], only: str | None
) -> Shape:
    name = only or CLASSES[rng.integers(len(CLASSES))]
    low, high = LARGE_RADII if only else RADII
    radius = math.sqrt(height * width) * math.exp(rng.uniform(math.log(low), math.log(high)))
    center = rng.uniform(*(MIDDLE if only else CENTERS), 2) * (width, height)
    if others and rng.random() < 0.5:  # close to another shape, so that many shapes overlap
        other = others[rng.integers(len(others))]
        direction = rng.uniform(0, 2 * math.pi)
        distance = (radius + other.radius) * rng.uniform(0.55, 0.95)
        center = other.center + distance * np.array([math.cos(direction), math.sin(direction)])
    if name == 'circle':
        return Shape(name, center, 0.85 * radius)
    if name == 'rectangle':
        half = rng.uniform(math.pi / 8, math.pi / 4)  # aspect ratio 1 : 1 to 1 : 2.4
        angles = np.array([-half, half, math.pi - half, math.pi + half])
        angles += rng.integers(2) * math.pi / 2
        tilted = rng.random() < 0.5
    else:
        # each interior angle is half of the opposite arc, so it is at least 40 degrees
        angles = np.radians(np.array([-90, 30, 150]) + rng.uniform(-20, 20, 3))
        tilted = True
    if tilted:
        angles += rng.uniform(-0.25, 0.25)
    return Shape(
        name, center, radius, center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    )


def _well_visible(mask: np.ndarray, area: float) -> bool:
    """Whether enough of a shape is visible, in parts that polygons can represent."""
    contours, tree = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours or (tree[0, :, 3] >= 0).any():  # nothing is visible, or there is a hole
        return False
    if without_small_parts(mask).sum() < max(MIN_VISIBLE_FRACTION * area, 1):
        return False
    size = max((cv2.boundingRect(contour)[2:] for contour in contours), key=math.prod)
    return min(size) >= MIN_VISIBLE_SIZE


def without_small_parts(mask: np.ndarray) -> np.ndarray:
    """Return ``mask`` (H, W) without connected components of less than ``MIN_PART_AREA``."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= MIN_PART_AREA
    keep[0] = False
    return mask if count == 2 and keep[1] else keep[components]


def _new_hue(rng: np.random.Generator, hues: list[float]) -> float:
    """Return the hue, out of 8 random ones in [0, 1), that differs most from those in use."""
    choices = rng.uniform(0, 1, 8)
    if not hues:
        return float(choices[0])
    difference = np.abs(choices[:, None] - np.array(hues)[None])
    return float(choices[np.minimum(difference, 1 - difference).min(1).argmax()])


def _vivid(rng: np.random.Generator, hue: float) -> np.ndarray:
    color = colorsys.hsv_to_rgb(hue, rng.uniform(0.65, 1), rng.uniform(0.55, 0.95))
    return 255 * np.array(color)


def _fill(
    rng: np.random.Generator, height: int, width: int, color: np.ndarray, contrast: float = 1.0
) -> np.ndarray:
    """Return a texture with the mean ``color``, float32, (H, W, 3)."""
    texture = _texture(rng, height, width) * (contrast * rng.uniform(6, 26))
    texture += _noise(rng, height, width, int(rng.integers(3, 9))) * (contrast * rng.uniform(3, 12))
    return texture[..., None] + color.astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise, a gradient, stripes or a checkerboard from about -1 to 1, (H, W)."""
    kind = rng.integers(4)
    if kind == 0:
        return _noise(rng, height, width, int(rng.integers(16, 64)))
    angle = rng.uniform(0, math.pi)
    x, y = _grid(height, width)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    if kind == 1:
        return 2 * (along - along.min()) / np.ptp(along) - 1
    frequency = 2 * math.pi / rng.uniform(8, 32)
    waves = np.sin(along * frequency + rng.uniform(0, 2 * math.pi))
    return waves if kind == 2 else np.sign(waves) * np.sign(np.sin(across * frequency))


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, W) and y (H, 1) of the pixel centers, float32."""
    x = np.arange(width, dtype=np.float32)[None] + 0.5
    return x, np.arange(height, dtype=np.float32)[:, None] + 0.5


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
