"""Class names of label maps."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from mmengine.registry import DATASETS

from ..errors import UserError
from ..registry import class_of
from .folder import Folder
from .label_values import GRAY, LabelMap

# one name per line
NAMES = ('classes.txt', 'labels.txt', 'class_names.txt')
# a name and its value or color per line: of CVAT, Roboflow, CamVid
TABLES = ('labelmap.txt', '_classes.csv', 'class_dict.csv')
IGNORED = 255
# a label map with more values, of which 0 and 255 cover more than this part, has soft edges
SOFT_VALUES, SOFT_BINARY = 16, 0.9


def named_values(folder: Folder) -> tuple[dict[int, str], bool]:
    """Return the names of values or colors that a file lists, if any, and whether they are colors.

    A line is ``cat:128,0,0::`` in ``labelmap.txt``, and ``1, cat`` or ``cat,128,0,0`` in ``.csv``.

    Raises:
        UserError: If there are several files that differ.
    """
    lines, _ = folder.class_names(TABLES)
    named, as_colors = {}, False
    for line in lines or ():
        cells = [cell.strip() for cell in re.split('[:,]', line) if cell.strip()]
        numbers = [int(cell) for cell in cells if cell.isdecimal()]
        texts = [cell for cell in cells if not cell.isdecimal()]
        if line.startswith('#') or not texts or len(numbers) not in (1, 3) or max(numbers) > 255:
            continue  # such as a header
        as_colors = len(numbers) == 3
        color = int.from_bytes(bytes(numbers), 'big')
        named[color if as_colors else color * GRAY] = texts[0]
    return named, as_colors


def classes_of(
    folder: Folder, maps: Sequence[LabelMap], named: Mapping[int, str]
) -> tuple[list[str], dict[int, int]]:
    """Return the class names, and the label of each color.

    Args:
        folder: The folder of the data.
        maps: The label maps.
        named: Names of values or colors, from ``named_values``.

    Raises:
        UserError: If there is only one class, if the names do not fit the values, or if the values
            look like soft edges.
    """
    colors: Counter[int] = sum((Counter(each.colors) for each in maps), Counter())
    if len(named) > 1:
        return list(named.values()), _labels_of(folder, colors, named)
    gray = all(color % GRAY == 0 for color in colors)
    names, file = folder.class_names(NAMES)
    if not names and all(each.file.stem.endswith('_labelTrainIds') for each in maps):
        names = list(class_of('mmseg.CityscapesDataset', DATASETS).METAINFO['classes'])
    labels = {}
    if gray and not names:
        _require_sharp_edges(folder, colors)
    # 0 and 255 alone are two classes
    if gray and IGNORED * GRAY in colors and len(colors) > 2 and len(names or ()) != len(colors):
        labels[IGNORED * GRAY] = IGNORED
        folder.notes.append(
            f'pixels with the value {IGNORED} are ignored: if they are a class, add classes.txt '
            'with one name per value and line'
        )
    used = sorted(colors.keys() - labels.keys())
    shown = [str(color // GRAY) if gray else f'{color:06x}' for color in used]
    if len(used) < 2:
        raise UserError(
            f'all pixels of the label maps of {folder.path} have the value {shown[0]}: a segmentor '
            'needs at least two classes, one of which may be the background'
        )
    if gray and names and used[-1] // GRAY < len(names):
        return names, labels | {color: color // GRAY for color in used}
    if names is None and shown == ['0', '255']:
        names = ['background', 'foreground']
    elif names is None:
        names = [f'{"class" if gray else "color"}_{text}' for text in shown]
        folder.notes.append(
            f'the classes are named after the {"values" if gray else "colors"} of the label maps: '
            'rename them in config.py, or add classes.txt with one name per value and line'
        )
    if len(names) != len(used):
        raise UserError(
            f'{file} has {len(names)} names, but the label maps have {len(used)} values '
            f'({", ".join(shown)}): write one name per line, in this order'
        )
    return names, labels | {color: number for number, color in enumerate(used)}


def _labels_of(folder: Folder, colors: Collection[int], named: Mapping[int, str]) -> dict[int, int]:
    """Return the label of each color, in the order of the named ones."""
    labels = {color: label for label, color in enumerate(named)}
    if all(color % GRAY == 0 for color in named) and IGNORED * GRAY in colors:
        labels.setdefault(IGNORED * GRAY, IGNORED)
    unknown = sorted(set(colors) - set(labels))
    if unknown:
        _, file = folder.class_names(TABLES)
        gray = all(color % GRAY == 0 for color in colors)
        shown = f'value {unknown[0] // GRAY}' if gray else f'color {unknown[0]:06x}'
        raise UserError(
            f'the label maps have the {shown}, which {file} does not list: add it with a name, or '
            'correct the label maps'
        )
    return labels


def _require_sharp_edges(folder: Folder, colors: Mapping[int, int]) -> None:
    """Raise a UserError if the values are those of binary masks with antialiased edges."""
    binary = sum(colors.get(value * GRAY, 0) for value in (0, 255)) / sum(colors.values())
    if len(colors) > SOFT_VALUES and binary > SOFT_BINARY:
        raise UserError(
            f'the label maps of {folder.path} have {len(colors)} values, but {binary:.0%} of the '
            'pixels are 0 or 255: if these are binary masks with soft edges, save them without '
            'antialiasing; otherwise, add classes.txt with one name per value and line'
        )
