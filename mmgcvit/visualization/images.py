"""Images as a dataset's pipeline loads them, converted for pictures.

H, W: height and width of an image in pixels, C: number of channels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..engine.wrappers import datasets_of


def load_image(dataset: Dataset, info: Mapping[str, Any]) -> np.ndarray:
    """Load an image with the transforms of a dataset, up to the first one that returns an image.

    A second reader would differ from the pipeline's in orientation, bands or file format.

    Args:
        dataset: Dataset of mmengine, which may be wrapped or concatenated. Files of datasets
            without a pipeline are read by mmcv.
        info: What the transforms need, such as ``img_path``: a data info of the dataset, or the
            metainfo of a data sample.

    Returns:
        Image as in :func:`to_rgb`.

    Raises:
        ValueError: If no transform loads an image.
    """
    from mmcv.transforms import LoadImageFromFile

    pipeline = getattr(image_dataset(dataset, info['img_path']), 'pipeline', None)
    results = dict(info)
    for transform in getattr(pipeline, 'transforms', None) or [LoadImageFromFile()]:
        results = transform(results)
        if results is None:
            break
        if 'img' in results:
            return to_rgb(results['img'], _is_bgr(transform, results['img']))
    raise ValueError('no transform of the pipeline loads this image')


def to_rgb(image: np.ndarray, is_bgr: bool) -> np.ndarray:
    """Convert an image of any number of channels and any data type to 8-bit RGB.

    The first three channels are shown; an image with fewer is shown in gray. Values other than
    whole numbers from 0 to 255 are scaled from their range in these channels.

    Args:
        image: Image, (H, W) or (H, W, C).
        is_bgr: Whether the first three channels are blue, green and red.

    Returns:
        Image, (H, W, 3), uint8.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3:
        raise ValueError(f'an image must have 2 or 3 dimensions, and this one has {image.ndim}')
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if is_bgr:
        image = image[..., ::-1]
    return np.ascontiguousarray(_to_8_bit(image))


def _is_bgr(loader: Callable[[dict], dict], image: np.ndarray) -> bool:
    """Return whether an image is in OpenMMLab's usual order, not in the order of its file."""
    decoder = getattr(loader, 'imdecode_backend', None)
    channels = image.shape[2] if image.ndim == 3 else 1
    # of mmcv's decoders, only tifffile keeps the order of the file; others may return BGRA
    return decoder != 'tifffile' and (channels == 3 or (channels == 4 and decoder is not None))


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    finite = np.isfinite(image)
    low, high = (image[finite].min(), image[finite].max()) if finite.any() else (0, 0)
    # 8-bit images that the pipeline has converted, for example with to_float32
    if low >= 0 and 1 < high <= 255 and (np.mod(image[finite], 1) == 0).all():
        low, high = 0, 255
    values = np.where(finite, image, low).astype(np.float32) - np.float32(low)
    return (values * (255 / max(float(high) - float(low), 1e-12))).round().astype(np.uint8)


def image_dataset(dataset: Dataset, path: str | Sequence[str]) -> Dataset:
    """Return the dataset that an image belongs to, without its wrappers."""
    datasets = list(datasets_of(dataset))
    return next((each for each in datasets if _inside(each, path)), datasets[0])


def image_name(dataset: Dataset, path: str | Sequence[str]) -> str:
    """Return an image's path relative to the image folder, or its file name if it is elsewhere.

    Subfolders may have the same file names. An image in several files, such as one per band, has
    the name of the first.
    """
    name = _inside(image_dataset(dataset, path), path)
    return name or Path(path if isinstance(path, str) else path[0]).name


def _inside(dataset: Dataset, path: str | Sequence[str]) -> str | None:
    first = Path(path if isinstance(path, str) else path[0])
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    for prefix in (prefixes.get('img'), prefixes.get('img_path')):
        if prefix and first.is_relative_to(prefix):
            return str(first.relative_to(prefix))
    return None
