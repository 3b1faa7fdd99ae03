"""A dataset for the checks, built, read and opened by the classes that the config names.

H, W: height and width of an image in pixels.
"""

import contextlib
import copy
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from ...errors import describe
from ...registry import class_of
from ...sampling import evenly
from ..known_errors import package_error
from .report import Counts, Problem, Unchecked

FEW = 5000  # files that can be looked up within a moment, on a network file system too
SOME = 20
PACKAGES = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmgcvit')
ORIENTATION = 0x0112  # Exif tag; 1 is upright


@dataclass
class Opened:
    """An item of a dataset after its loading transforms.

    Attributes:
        item: The dataset's entry.
        error: Why the image cannot be loaded.
        size: Image height and width, or None if unknown.
        channels: Number of channels of the image, or None if unknown.
        orientation: Exif orientation if the transform turned the image by it, otherwise 1.
        label_size: Height and width of the label map.
        pixels: Number of pixels by label value, as loaded.
        label_fault: What is wrong with the file of the label map.
    """

    item: dict[str, Any]
    error: str | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    orientation: int = 1
    label_size: tuple[int, int] | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    label_fault: str | None = None


@dataclass
class Split:
    """A dataset of a config.

    Attributes:
        cfg: The config.
        names: Splits that use the dataset, such as ['val', 'test'].
        option: Its place in the config, for remedies.
        leaf: Its config, without wrappers.
        samples: Number of items to open, None for all.
        fast: Whether large annotation files are not read completely, and only some of many files
            are looked up.
        boxes_only: Splits for which the remedy was to use boxes only; all datasets share it.
        show: Called with a line of text, to display the progress.
        counts: What training or evaluation uses.
        content: COCO's annotation file.
        items: Entries of the dataset after its filter and its ``indices``.
        filtered: Number of entries after its filter.
        in_part: Whether only the categories and the first images were read.
    """

    cfg: Config
    names: list[str]
    option: str
    leaf: Mapping[str, Any]
    samples: int | None
    fast: bool
    boxes_only: set[str]
    show: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    content: dict[str, list[dict]] = field(default_factory=dict)
    items: list[dict] = field(default_factory=list)
    filtered: int = 0
    in_part: bool = False

    @cached_property
    def cls(self) -> Any:
        return class_of(self.leaf, DATASETS, self.cfg.get('default_scope'))

    @cached_property
    def bases(self) -> set[str]:
        # names, because users may have installed only one of mmdet and mmseg
        return {base.__name__ for base in getattr(self.cls, '__mro__', ())}

    @cached_property
    def dataset(self) -> Any:
        """The dataset as the training builds it, but not yet read or reduced to ``indices``."""
        leaf = {key: value for key, value in self.leaf.items() if key != 'indices'}
        try:
            return DATASETS.build(dict(leaf, pipeline=[], lazy_init=True, serialize_data=False))
        except TypeError:  # a class may not have all arguments
            return DATASETS.build(leaf)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, empty if the dataset has none."""
        classes = self.dataset.metainfo.get('classes')
        return tuple(classes) if isinstance(classes, list | tuple) else ()

    @property
    def path(self) -> str:
        return self.dataset.ann_file

    @property
    def trains(self) -> bool:
        return 'train' in self.names

    @cached_property
    def pipeline(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Class names and configs of the transforms."""
        scope = self.cfg.get('default_scope')
        steps = [step for step in self.leaf.get('pipeline') or [] if isinstance(step, Mapping)]
        classes = [class_of(step, TRANSFORMS, scope) for step in steps]
        return [
            (getattr(cls, '__name__', str(cls)), step)
            for cls, step in zip(classes, steps, strict=True)
        ]

    @cached_property
    def loaders(self) -> list[Any]:
        """The transforms that read files: the first one, which loads the image, and all ``Load…``.

        Raises:
            Unchecked: If there is none.
        """
        steps = [
            step
            for number, (name, step) in enumerate(self.pipeline)
            if number == 0 or name.startswith('Load')
        ]
        if not steps:
            raise Unchecked(f'{self.option}.pipeline has no transform that loads images')
        return [TRANSFORMS.build(step) for step in steps]

    def or_leave_out(self, check: str) -> str:
        """Return how to train on the other datasets if this is one of several, or ''."""
        if '.datasets.' not in self.option:
            return ''
        return (
            f', or remove {self.option}; to train on the other datasets as they are, set '
            f'--cfg-options skip_checks={check}'
        )

    def loads(self, key: str) -> bool:
        """Return whether a loading transform has this argument set to True."""
        return any(bool(getattr(loader, key, False)) for loader in self.loaders)

    @property
    def is_remote(self) -> bool:
        """Whether annotations are read from another place than this machine's folders."""
        paths = [self.leaf.get('data_root'), self.leaf.get('ann_file')]
        return is_remote(self.leaf.get('backend_args'), *paths)

    @cached_property
    def has_remote_images(self) -> bool:
        prefixes = self.dataset.data_prefix.values()
        backend = getattr(self.loaders[0], 'backend_args', None)
        return self.is_remote or is_remote(backend, *prefixes)

    def missing(self, key: str, what: str, remedy: str) -> Iterator[Problem]:
        """Look up the files of the items.

        Args:
            key: Key of their paths in the items.
            what: Their name in the message, in the plural.
            remedy: What to do if they are missing.
        """
        if self.has_remote_images:
            raise Unchecked(f'the {what} are in remote storage')
        paths = [item[key] for item in self.items if item.get(key)]
        if self.fast and len(paths) > FEW:
            paths = [paths[i] for i in evenly(len(paths), SOME)]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            yield Problem(
                f'{len(missing)} of {len(paths)} {what} are missing, for example {missing[0]}: '
                f'{remedy}'
            )

    def never_predicted(self, text: str, what: str) -> Problem:
        """Return the problem that classes have no examples.

        Args:
            text: What was found.
            what: What the user can add.
        """
        return Problem(
            f'{text}; they will never be predicted: add {what}, or remove them from '
            f'{self.option}.metainfo.classes',
            stops=False,
        )

    @cached_property
    def opened(self) -> list[Opened]:
        """Items that were opened, evenly spaced. Missing files are left out."""
        count = len(self.items) if self.samples is None else self.samples
        chosen = [self.items[i] for i in evenly(len(self.items), count)] if self.items else []
        if not self.has_remote_images:
            chosen = [item for item in chosen if os.path.isfile(item['img_path'])]
        found = []
        for number, item in enumerate(chosen):
            if number % 100 == 0:
                self.show(f'{", ".join(self.names)}: images, {number} of {len(chosen)}')
            found.append(self._open(item))
        return [opened for opened in found if opened is not None]

    def _open(self, item: dict) -> Opened | None:
        opened = Opened(item)
        image = self.loaders[0]
        try:
            loaded = image(copy.deepcopy(item))
        except Exception as error:  # a loader may raise anything
            opened.error = describe(error)
            return opened
        if loaded is None:  # ignore_empty=True: training skips the image
            return None
        pixels = loaded.get('img')
        opened.size = loaded.get('ori_shape') or getattr(pixels, 'shape', ())[:2] or None
        if isinstance(pixels, np.ndarray):
            opened.channels = pixels.shape[2] if pixels.ndim > 2 else 1
        if _turns(image):
            opened.orientation = _orientation(item['img_path'], image)
        if self.labels is not None and item.get('seg_map_path'):
            self._open_labels(opened, loaded)
        return opened

    @cached_property
    def labels(self) -> Any:
        """The transform that loads label maps, or None."""
        if 'BaseSegDataset' not in self.bases:
            return None
        others = self.loaders[1:]
        return next((each for each in others if hasattr(each, 'with_seg')), (*others, None)[0])

    def _open_labels(self, opened: Opened, loaded: dict) -> None:
        path = opened.item['seg_map_path']
        if not (self.has_remote_images or os.path.isfile(path)):
            return  # reported as missing
        backend = getattr(self.labels, 'imdecode_backend', None)
        if backend is not None and _is_of_library(self.labels):
            import mmcv  # the package is imported without it, too

            # the transform casts to 8 bits, which hides larger values
            try:
                content = fileio.get(path, backend_args=self.labels.backend_args)
                raw = mmcv.imfrombytes(content, flag='unchanged', backend=backend)
                largest, channels = raw.max(), raw.squeeze().shape[2:]
            except Exception:
                opened.label_fault = 'cannot be read as an image: replace them'
                return
            if channels:
                opened.label_fault = (
                    f'hold colors ({channels[0]} channels), not one label value per pixel: '
                    'convert them to single-channel images of label values'
                )
                return
            if largest > 255:
                opened.label_fault = f'have label values above 255, such as {largest}: use 0 to 255'
                return
        try:
            labels = self.labels(loaded).get('gt_seg_map')
        except Exception as error:
            opened.label_fault = (
                f'cannot be loaded ({describe(error)}): correct LoadAnnotations in '
                f'{self.option}.pipeline'
            )
            return
        if labels is None:  # a transform of the user's own
            return
        if labels.ndim < 2:  # mmseg squeezes them
            opened.label_fault = (
                'are one pixel wide or high, which LoadAnnotations does not support: remove these '
                'images'
            )
            return
        opened.label_size = labels.shape
        values, counts = np.unique(labels, return_counts=True)
        opened.pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))


def images(split: Split) -> Iterator[Problem]:
    """Images that the loading transform cannot read."""
    broken = [opened for opened in split.opened if opened.error]
    if not broken:
        return
    number, total = len(broken), len(split.opened)
    first = f'{broken[0].item["img_path"]} ({broken[0].error})'
    if number == total and split.has_remote_images:
        raise Unchecked(f'no image could be read from its storage, for example {first}')
    loader = split.loaders[0]
    if getattr(loader, 'imdecode_backend', None) == 'tifffile' and find_spec('tifffile') is None:
        yield Problem(f'{split.option}.pipeline reads images with tifffile: pip install tifffile')
        return
    setting = f', or change {type(loader).__name__} in {split.option}.pipeline'
    yield Problem(
        f'{number} of {total} images that were opened are broken, for example {first}: '
        f'replace them, or remove them from the dataset{setting if number == total else ""}'
    )


def channels(split: Split) -> Iterator[Problem]:
    """Images with different numbers of channels, as loaded."""
    found: dict[int, list[str]] = defaultdict(list)
    for opened in split.opened:
        if opened.channels is not None:
            found[opened.channels].append(opened.item['img_path'])
    if len(found) < 2:
        return
    usual = max(found, key=lambda number: len(found[number]))
    others = [path for number, paths in found.items() if number != usual for path in paths]
    number = next(number for number, paths in found.items() if others[0] in paths)
    scope = split.cfg.get('default_scope')
    classes = [class_of(step, TRANSFORMS, scope) for _, step in split.pipeline]
    own = any(getattr(cls, '__module__', '').partition('.')[0] not in PACKAGES for cls in classes)
    yield Problem(
        f'{len(others)} of {len(split.opened)} images that were opened have another number of '
        f'channels than the others, for example {others[0]} has {number} and not {usual}: convert '
        "them, or set color_type='color' in LoadImageFromFile of every pipeline",
        # transforms of the user may change it, and mmseg can broadcast a single channel
        stops=not own and set(found) != {1, 3},
    )


def dataset(split: Split) -> Iterator[Problem]:
    """Datasets that cannot be built."""
    if split.cls is None:
        yield Problem(
            f'{split.option}.type={split.leaf.get("type")!r} is not a known dataset: correct it, '
            'or import its module'
        )
        return
    name = getattr(split.cls, '__name__', split.cls)
    known = {'CocoDataset', 'BaseSegDataset', 'CustomDataset'}
    if not split.bases & known:
        raise Unchecked(f'{name} is neither a COCO dataset nor a segmentation dataset of folders')
    root = split.leaf.get('data_root')
    if root and not split.is_remote and not os.path.isdir(root):
        yield Problem(
            f'data_root {root} does not exist (current folder: {os.getcwd()}): put the dataset '
            f'there, or set its path with --cfg-options {split.option}.data_root=PATH'
        )
        with contextlib.suppress(Exception):  # its classes are compared with those of the heads
            split.dataset  # noqa: B018
        return
    try:
        split.dataset  # noqa: B018
    except Exception as error:
        yield Problem(f'{name} cannot be built ({describe(error)}): correct {split.option}')
        return
    try:
        split.loaders  # noqa: B018
    except Unchecked:
        pass  # the checks that open images report it
    except Exception as error:
        yield Problem(
            package_error(error)
            or f'the transforms that load files cannot be built ({describe(error)}): correct '
            f'{split.option}.pipeline'
        )
    # mmpretrain's datasets can have the classes of their folders, which are not yet read
    classes = split.dataset.metainfo.get('classes')
    if 'CustomDataset' not in split.bases and not isinstance(classes, list | tuple):
        yield Problem(
            f'metainfo.classes is not a tuple of names: set {split.option}.metainfo.classes to the '
            'names of the classes; a single class needs a comma: ("cat",)'
        )


def read_items(split: Split) -> None:
    """Let the dataset read its annotations and filter its items."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        split.dataset.full_init()
    split.filtered = len(split.dataset)
    if split.leaf.get('indices') is not None:
        split.dataset.get_subset_(split.leaf['indices'])
    split.items = split.dataset.data_list
    if not split.items and getattr(split.dataset, 'serialize_data', False):
        split.items = [split.dataset.get_data_info(i) for i in range(len(split.dataset))]
    split.counts.images = len(split.items)


def listed(names: list[str]) -> str:
    """Return names as a tuple, of which only the first ones are shown if there are many."""
    if len(names) <= 10:
        return repr(tuple(names))
    return f'({", ".join(map(repr, names[:10]))}, … {len(names)} in all)'


def find_evaluators(cfg: Config, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the places and configs of a split's evaluators."""
    evaluators = cfg.get(f'{name}_evaluator') or []
    if isinstance(evaluators, Mapping):
        yield f'{name}_evaluator', evaluators
    else:
        yield from ((f'{name}_evaluator.{i}', each) for i, each in enumerate(evaluators))


def is_remote(backend_args: Mapping[str, Any] | None, *paths: str | None) -> bool:
    """Return whether files are read by another backend than that of local files."""
    backend = (backend_args or {}).get('backend', 'local')
    return backend != 'local' or any('://' in str(path) for path in paths)


def _is_of_library(loader: Any) -> bool:
    """Return whether a transform reads label maps as mmcv does, not with code of the user's."""
    methods = (getattr(type(loader), name, None) for name in ('transform', '_load_seg_map'))
    packages = {getattr(each, '__module__', '').partition('.')[0] for each in methods}
    return packages <= {'mmcv', 'mmseg'}


def _turns(loader: Any) -> bool:
    """Return whether a loading transform turns images as their Exif data says."""
    return getattr(loader, 'color_type', None) in ('color', 'grayscale') and getattr(
        loader, 'imdecode_backend', None
    ) in ('cv2', 'pillow')


def _orientation(path: str, loader: Any) -> int:
    content = fileio.get(path, backend_args=getattr(loader, 'backend_args', None))
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a format that Pillow does not know
        return 1
