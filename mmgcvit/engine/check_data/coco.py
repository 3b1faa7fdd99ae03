"""Checks of detection datasets in COCO's format."""

import json
import math
import mmap
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine import fileio

from ...errors import counted, describe
from ..encodings import encoding_fault
from .masks import IGNORED, MISSING, box_options, mask_fault
from .report import Checks, Note, Problem, Unchecked
from .split import Split, channels, dataset, find_evaluators, images, listed, read_items

LARGE = 32 * 2**20  # bytes; larger files take more than a second or two to read
FIRST_IMAGES = 20
PART = 16 * 2**20  # more than any list of categories
SEPARATOR = re.compile(r'[,\s]*')
NUMBERS = ('area', 'height', 'width')
ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


def is_unlabelled(split: Split) -> bool:
    """Return whether the config declares images without annotations."""
    settings = split.dataset.filter_cfg or {}
    return settings.get('filter_empty_gt') is False or any(
        name == 'LoadEmptyAnnotations' for name, _ in split.pipeline
    )


def metrics_of(split: Split) -> set[str]:
    """Return the metrics of COCO's evaluation that read the annotation file."""
    metrics: set[str] = set()
    for name in split.names:
        for _, evaluator in find_evaluators(split.cfg, name):
            if evaluator.get('ann_file') and not evaluator.get('format_only'):
                metric = evaluator.get('metric', 'bbox')
                metrics |= {metric} if isinstance(metric, str) else set(metric)
    return metrics


def used_annotations(split: Split) -> Iterator[tuple[dict, dict, dict | None]]:
    """Yield the annotations of the classes in the images that are used.

    Yields:
        An annotation, its image, and its instance as the dataset parses it, or None if the dataset
        drops it.
    """
    images = {image['id']: dict(image, img_id=image['id']) for image in split.content['images']}
    used = {item['img_id'] for item in split.items}
    categories = split.content['categories']
    of_classes = {each['id'] for each in categories if each['name'] in split.classes}
    for annotation in split.content['annotations']:
        image = images.get(annotation['image_id'])
        if image is None or image['id'] not in used or annotation['category_id'] not in of_classes:
            continue
        raw = dict(raw_img_info=image, raw_ann_info=[annotation])
        instances = split.dataset.parse_data_info(raw)['instances']
        yield annotation, image, instances[0] if instances else None


def _shown(annotations: list[dict], path: str) -> str:
    """Describe the number of annotations with a fault, and the first one."""
    first = annotations[0]
    return (
        f'{len(annotations)} annotations of {path} (for example id {first["id"]} of image '
        f'{first["image_id"]})'
    )


def annotation_file(split: Split) -> Iterator[Problem]:
    """Annotation files that the dataset's own reader cannot read."""
    path = split.path
    if split.is_remote:
        if split.fast:
            raise Unchecked(f'{path} is in remote storage; tools/check_data.py reads it')
    elif not os.path.isfile(path):
        yield Problem(
            f'the annotation file {path} does not exist: put it there, or set its path with '
            f'--cfg-options {split.option}.ann_file=PATH (relative to data_root)'
        )
        return
    split.in_part = split.fast and os.path.getsize(path) > LARGE
    try:
        with fileio.get_local_path(path, backend_args=split.dataset.backend_args) as local:
            content = _read_part(local) if split.in_part else _read(local)
    except ValueError as error:
        start = fileio.get(path, backend_args=split.dataset.backend_args)[:4]
        yield Problem(
            encoding_fault(path, start)
            or f"{path} is not JSON in COCO's format ({describe(error)}): download it again, or "
            'export it as COCO, in UTF-8'
        )
        return
    except Exception as error:
        if split.is_remote:
            raise Unchecked(f'{path} could not be read from its storage ({error})') from error
        raise
    for key in ('images', 'categories', 'annotations'):
        may_lack = split.in_part or split.dataset.test_mode or is_unlabelled(split)
        if key == 'annotations' and may_lack:
            content.setdefault(key, [])
        if not isinstance(content.get(key), list):
            yield Problem(f'{path} has no list {key!r}: export it in COCO\'s format ("instances")')
            return
    if not content['images']:
        yield Problem(f'{path} lists no images: export it again with its images')
    split.content = content


def _read(path: str) -> dict:
    """Read a file as pycocotools does: in the default encoding."""
    with open(path) as file:
        content = json.load(file)
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}')
    return content


def _read_part(path: str) -> dict:
    """Read the categories and the first images of a file."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:64].lstrip()[:1] != b'{' or data[-64:].rstrip()[-1:] != b'}':
            raise ValueError('it does not begin with { and end with }, it may be truncated')
        return {
            'categories': _read_list(data, b'categories', None),
            'images': _read_list(data, b'images', FIRST_IMAGES),
        }


def _read_list(data: mmap.mmap, key: bytes, most: int | None) -> list | None:
    """Read the first elements of a list near the beginning or the end of a file."""
    pattern = re.compile(rb'"%s"\s*:\s*\[' % key)
    places = ((0, PART), (max(0, len(data) - PART), len(data)), (0, len(data)))
    match = next((found for place in places if (found := pattern.search(data, *place))), None)
    if match is None:
        return None
    text = data[match.end() : match.end() + PART].decode(errors='replace')
    decoder, position = json.JSONDecoder(), 0
    elements: list[Any] = []
    while most is None or len(elements) < most:
        separator = SEPARATOR.match(text, position)
        assert separator is not None  # it may be empty
        position = separator.end()
        if text[position : position + 1] in (']', ''):
            break
        element, position = decoder.raw_decode(text, position)
        elements.append(element)
    return elements


def annotation_fields(split: Split) -> Iterator[Problem]:
    """Entries of an annotation file that lack a field."""
    image_keys = ['id', 'file_name', 'height', 'width']
    reader = next(base for base in split.cls.__mro__ if 'load_data_list' in vars(base))
    if reader.__name__ != 'CocoDataset':
        image_keys.remove('file_name')  # such as LVIS, which reads another field
    for key, wanted in (
        ('images', image_keys),
        ('categories', ('id', 'name')),
        ('annotations', ANNOTATION_KEYS),
    ):
        for number, entry in enumerate(split.content[key]):
            if not has_fields(entry, wanted):
                yield Problem(
                    f'{split.path}: entry {number} of {key!r} lacks one of {", ".join(wanted)}, '
                    'or has a value that is not a number: export it again'
                )
                break


def has_fields(entry: Any, keys: Sequence[str]) -> bool:
    """Return whether an entry of an annotation file has fields of the right type."""
    return (
        isinstance(entry, Mapping)
        and all(key in entry for key in keys)
        and all(_is_number(entry[key]) for key in keys if key in NUMBERS)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def class_names(split: Split) -> Iterator[Problem | Note]:
    """Class names that are not the categories, in their order."""
    classes, option, path = split.classes, split.option, split.path
    # mmdet numbers the labels in the order of the file, whatever the order in the config
    names = [category['name'] for category in split.content['categories']]
    missing = [name for name in classes if name not in names]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    used = [name for name in names if name in classes]
    if missing:
        yield Problem(
            f'{len(missing)} of the {len(classes)} classes of the config are not categories of '
            f'{path}, for example {missing[0]!r}: its {len(names)} categories are '
            f'{listed(names)}; set '
            f"{option}.metainfo.classes to them and the heads' num_classes to their number"
        )
    elif repeated:
        yield Problem(f'{path} has several categories named {repeated[0]!r}: rename them')
    elif used != list(classes):
        yield Problem(
            f'the classes of the config are in another order than the categories of {path}, so '
            f'predictions would get the wrong class names: set {option}.metainfo.classes to '
            f'{listed(used)}'
        )
    elif len(names) > len(classes):
        unused = [name for name in names if name not in classes]
        yield Note(f'{len(unused)} categories of {path} are not used: {listed(unused)}')


def duplicate_ids(split: Split) -> Iterator[Problem]:
    """Ids that occur several times."""
    for key in ('images', 'annotations', 'categories'):
        ids = Counter(entry['id'] for entry in split.content[key])
        repeated = [i for i, times in ids.items() if times > 1]
        if repeated:
            yield Problem(
                f'{split.path}: {len(repeated)} ids of {key!r} occur several times, for example '
                f'{repeated[0]}: renumber them'
            )


def boxes(split: Split) -> Iterator[Problem]:
    """Boxes and references of annotations."""
    images = {image['id']: image for image in split.content['images']}
    categories = {category['id'] for category in split.content['categories']}
    bad = defaultdict(list)
    for annotation in split.content['annotations']:
        image, box = images.get(annotation['image_id']), annotation['bbox']
        if not _is_box(box):
            bad[
                'have a bbox that is not four finite numbers x, y, width, height with width and '
                'height of at least 0: correct them'
            ].append(annotation)
        if image is None:
            bad['have an image_id that no image has: correct or remove them'].append(annotation)
        elif _is_box(box):
            (x, y, width, height), right, bottom = box, image['width'], image['height']
            if min(x, y) < -1 or x + width > right + 1 or y + height > bottom + 1:
                bad[
                    'have a box that reaches beyond its image: clip it, or if its values are '
                    'corners x1, y1, x2, y2, make them x, y, width, height'
                ].append(annotation)
        if annotation['category_id'] not in categories:
            bad['have a category_id that no category has: correct them'].append(annotation)
    for text, found in bad.items():
        yield Problem(f'{_shown(found, split.path)} {text}', stops='have a bbox' in text)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0
    )


def reading(split: Split) -> Iterator[Problem | Note]:
    """What the dataset itself reads and keeps of its annotations."""
    total = len(split.content['images'])
    if split.in_part:
        split.items = [
            split.dataset.parse_data_info(
                dict(raw_img_info=dict(image, img_id=image['id']), raw_ann_info=[])
            )
            for image in split.content['images']
        ]
        return
    try:
        read_items(split)
    except ImportError as error:  # LVIS
        yield Problem(f'{split.cls.__name__} needs another package ({describe(error)})')
        return
    except Exception as error:
        yield Problem(
            f'{split.cls.__name__} cannot read {split.path} ({describe(error)}): correct it or '
            f'{split.option}'
        )
        return
    left, settings = len(split.items), split.dataset.filter_cfg
    reasons = [f'filter_cfg={dict(settings)}'] if settings and split.filtered < total else []
    if left < split.filtered:
        reasons.append('indices')
    reason = ', '.join(reasons) or split.cls.__name__
    if left == 0:
        annotated = len({annotation['image_id'] for annotation in split.content['annotations']})
        yield Problem(
            f'no image is left for training: {reason} drops all {total}, {annotated} of them with '
            'an annotation; correct the annotations, the classes or '
            f'{" or ".join(reason.partition("=")[0] for reason in reasons) or split.option}'
        )
    elif left < total:
        yield Note(f'the dataset uses {left} of {total} images ({reason})')


def image_files(split: Split) -> Iterator[Problem]:
    """Images, or their folder, that do not exist."""
    folder = os.path.normpath(split.dataset.data_prefix.get('img') or '.')
    if split.has_remote_images or os.path.isdir(folder):
        remedy = f'put them there, or change {split.option}.data_prefix.img'
        yield from split.missing('img_path', 'images', remedy)
    else:
        yield Problem(
            f'the folder of images {folder} does not exist: put them there, or set their path '
            f'with --cfg-options {split.option}.data_prefix.img=PATH (relative to data_root)'
        )


def image_sizes(split: Split) -> Iterator[Problem]:
    """Images of another size than their entries."""
    differ = [
        (opened, opened.size)
        for opened in split.opened
        if opened.size and opened.size != (opened.item['height'], opened.item['width'])
    ]
    if not differ:
        return
    first, (height, width) = differ[0]
    item = first.item
    text = (
        f'{len(differ)} images differ in size (width × height, as loaded) from their entries in '
        f'{split.path}: {item["img_path"]} is {width}×{height}, its entry has '
        f'{item["width"]}×{item["height"]}; correct the entries and their boxes'
    )
    if first.orientation > 1 and (width, height) == (item['height'], item['width']):
        text += (
            ', or, if the boxes belong to the image as it is stored (without the rotation of its '
            "Exif data), set color_type='color_ignore_orientation' in LoadImageFromFile of every "
            'pipeline'
        )
    yield Problem(text)


def instances(split: Split) -> Iterator[Problem | Note]:
    """Datasets in which few or no instances can be trained on."""
    if split.in_part:
        raise Unchecked(
            f'{split.path} was not read completely, because it is large: tools/check_data.py does'
        )
    counts: Counter[str] = Counter()
    annotated: set[int] = set()
    kept, ignored, dropped = 0, 0, []
    names = {category['id']: category['name'] for category in split.content['categories']}
    for annotation, image, instance in used_annotations(split):
        if instance is None:
            dropped.append(annotation)
            continue
        kept += 1
        if instance.get('ignore_flag'):
            ignored += 1
            continue
        counts[names[annotation['category_id']]] += 1
        annotated.add(image['id'])
    split.counts.classes = {name: counts[name] for name in split.classes}
    split.counts.annotated = len(annotated)
    if dropped:
        yield Note(
            f'{_shown(dropped, split.path)} are not used (ignored, without area, or smaller than '
            'a pixel)'
        )
    if not counts and not kept and (is_unlabelled(split) or split.names == ['test']):
        yield Note(f'{split.path} has no instances')
    elif not counts:
        text = (
            f'of {len(split.content["annotations"])} annotations in {split.path}, {ignored} are '
            'iscrowd or ignored, and the others are not used; correct iscrowd, ignore, area and '
            'bbox of the annotations'
        )
        purpose = 'nothing is left to train on' if split.trains else 'all metrics will be -1'
        remedy = split.or_leave_out('instances')
        yield Problem(f'{purpose}: {text}{remedy}', stops=split.trains)
    elif ignored > kept / 2:
        yield Problem(
            f'{ignored} of {kept} instances in {split.path} are iscrowd, so training ignores '
            'them: set iscrowd to 0 for annotations of single objects',
            stops=False,
        )


def empty_class(split: Split) -> Iterator[Problem | Note]:
    """Classes without an instance."""
    empty = [name for name, number in split.counts.classes.items() if not number]
    if not empty or len(empty) == len(split.counts.classes):
        return
    text = f'{counted(len(empty), "class has", "classes have")} no instance: {listed(empty)}'
    if split.trains:
        yield split.never_predicted(text, 'annotations')
    else:
        yield Note(f'{text}; they do not count in the metrics')


def masks(split: Split) -> Iterator[Problem]:
    """Masks that training or evaluation cannot use."""
    loads, evaluates = split.loads('with_mask'), 'segm' in metrics_of(split)
    if not (loads or evaluates):
        return
    polygons_only = loads and not split.loads('poly2mask')
    bad, usable = defaultdict(list), 0
    for annotation, image, instance in used_annotations(split):
        if not (evaluates or instance):
            continue  # dropped by the dataset before its mask is loaded
        fault = mask_fault(
            annotation.get('segmentation'),
            (image['height'], image['width']),
            evaluates,
            polygons_only and not annotation.get('iscrowd'),
        )
        usable += fault is None
        if fault is not None:
            bad[fault].append(annotation)
    purpose = 'which the mask head is trained on' if split.trains else 'which mask AP needs'
    for fault, found in bad.items():
        text = f'{_shown(found, split.path)} {fault}'
        if fault == MISSING:
            text += f', {purpose}: add it{_use_boxes_only(split)}'
        elif fault in IGNORED and not usable:
            text += split.or_leave_out('masks')
        yield Problem(text, stops=fault not in IGNORED or not usable)


def _use_boxes_only(split: Split) -> str:
    """Return the remedy if masks are missing, once for all splits of a training."""
    if 'train' in split.boxes_only:
        return ', or use boxes only, as above'
    options = box_options(split.cfg, split.names)
    split.boxes_only.update(split.names if options else ())
    return f', or use boxes only: --cfg-options {" ".join(options)}' if options else ''


def iscrowd(split: Split) -> Iterator[Problem]:
    """Annotations without a number in the field that COCO's evaluation needs."""
    found = [each for each in split.content['annotations'] if not _is_number(each.get('iscrowd'))]
    if metrics_of(split) and found:
        yield Problem(
            f"{_shown(found, split.path)} lack 'iscrowd', or it is not a number, which COCO's "
            'metric needs: set it to 0, or to 1 for groups of objects'
        )


def annotation_ids(split: Split) -> Iterator[Problem]:
    """Ids with which COCO's evaluation fails or counts wrongly."""
    if not metrics_of(split):
        return
    kinds = {isinstance(image['id'], str) for image in split.content['images']}
    if len(kinds) > 1:
        yield Problem(
            f"{split.path}: some ids of 'images' are numbers and some are text, which COCO's "
            'metric cannot sort: make all of them numbers, also as image_id of the annotations'
        )
    remedy = 'number the annotations from 1'
    other = [each for each in split.content['annotations'] if not _is_number(each['id'])]
    if other:
        yield Problem(
            f"{_shown(other, split.path)} have an id that is not a number, which COCO's metric "
            f'needs: {remedy}'
        )
    zero = [each for each in split.content['annotations'] if each['id'] == 0]
    if zero:
        yield Problem(
            f"{_shown(zero, split.path)} have the id 0, which COCO's metric takes for a "
            f'missing object: {remedy}',
            stops=False,
        )


def loading(split: Split) -> Iterator[Problem]:
    """Annotations that the loading transforms cannot load."""
    for opened in split.opened:
        if opened.error or not opened.item.get('instances'):
            continue
        results = dict(opened.item, ori_shape=opened.size, img_shape=opened.size)
        for transform in split.loaders[1:]:
            try:
                transform(results)
            except Exception as error:
                yield Problem(
                    f'{type(transform).__name__} cannot load the annotations of '
                    f'{opened.item["img_path"]} ({describe(error)}): correct them in '
                    f'{split.path}, or {split.option}.pipeline'
                )
                return


# check → checks that have to succeed first
COCO: Checks = {
    dataset: (),
    annotation_file: (dataset,),
    annotation_fields: (annotation_file,),
    class_names: (annotation_fields,),
    duplicate_ids: (annotation_fields,),
    boxes: (annotation_fields,),
    iscrowd: (annotation_fields,),
    annotation_ids: (annotation_fields,),
    reading: (duplicate_ids, boxes),
    image_files: (reading,),
    images: (reading,),
    channels: (images,),
    image_sizes: (images,),
    instances: (reading, class_names),
    empty_class: (instances,),
    masks: (reading,),
    loading: (masks, images),
}
