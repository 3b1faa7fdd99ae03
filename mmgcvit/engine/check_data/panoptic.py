"""Checks of panoptic datasets in COCO's format.

H, W: height and width of an image in pixels.
"""

import io
from collections import Counter
from collections.abc import Iterator

import numpy as np
from mmengine import fileio
from PIL import Image

from ...errors import describe
from ...panoptic import segment_ids
from .coco import (
    annotation_file,
    class_names,
    empty_class,
    has_fields,
    image_files,
    image_sizes,
    loading,
    reading,
)
from .report import Checks, Problem, Unchecked
from .split import Split, channels, dataset, images

FIELDS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name', 'isthing'),
    'annotations': ('image_id', 'file_name', 'segments_info'),
}
COLORS = (
    'write the label map again as PNG, with id % 256, id // 256 % 256 and id // 65536 as red, '
    'green and blue'
)
SEGMENT = ('id', 'category_id', 'bbox', 'area')


def panoptic_fields(split: Split) -> Iterator[Problem]:
    """Entries of an annotation file that lack a field."""
    for key, wanted in FIELDS.items():
        for number, entry in enumerate(split.content[key]):
            if not has_fields(entry, wanted):
                yield Problem(
                    f'{split.path}: entry {number} of {key!r} lacks one of {", ".join(wanted)}: '
                    "export it in COCO's panoptic format, not as instances"
                )
                return
    for annotation in split.content['annotations']:
        if not all(has_fields(segment, SEGMENT) for segment in annotation['segments_info']):
            yield Problem(
                f'{split.path}: a segment of image {annotation["image_id"]} lacks one of '
                f'{", ".join(SEGMENT)}: export it again'
            )
            return


def references(split: Split) -> Iterator[Problem]:
    """Annotations of images or categories that do not exist."""
    image_ids, category_ids = (
        {entry['id'] for entry in split.content[key]} for key in ('images', 'categories')
    )
    for annotation in split.content['annotations']:
        number = annotation['image_id']
        if number not in image_ids and not split.in_part:
            yield Problem(
                f'{split.path}: {annotation["file_name"]} has the image_id {number}, which is not '
                'the id of an image: correct or remove it'
            )
            return
        for segment in annotation['segments_info']:
            if segment['category_id'] not in category_ids:
                yield Problem(
                    f'{split.path}: segment {segment["id"]} of image {number} has the category_id '
                    f'{segment["category_id"]}, which is not the id of a category: correct it'
                )
                return


def label_map_files(split: Split) -> Iterator[Problem]:
    """Label maps that do not exist."""
    remedy = f'put them there, or change {split.option}.data_prefix.seg'
    yield from split.missing('seg_map_path', 'label maps', remedy)


def segments(split: Split) -> Iterator[Problem]:
    """Label maps that do not match their image, or the segments in the annotation file."""
    if split.has_remote_images:
        raise Unchecked('the label maps are in remote storage')
    listed = {
        each['image_id']: {segment['id'] for segment in each['segments_info']}
        for each in split.content['annotations']
    }
    for opened in split.opened:
        path = opened.item['seg_map_path']
        if path is None:  # a test set without annotations
            continue
        try:
            with Image.open(io.BytesIO(fileio.get(path))) as image:
                colors = np.asarray(image.convert('RGB'))
        except Exception as error:  # a broken file may raise anything
            yield Problem(f'{path} cannot be read as an image ({describe(error)}): replace it')
            return
        if opened.size and colors.shape[:2] != tuple(opened.size):
            (height, width), (other, another) = opened.size, colors.shape[:2]
            yield Problem(
                f'{path} is {another}×{other}, but its image is {width}×{height}: use label maps '
                'of the size of their images'
            )
            return
        if split.in_part:
            continue
        ids = set(np.unique(segment_ids(colors)).tolist()) - {0}
        wanted = listed.get(opened.item['img_id'], set())
        if missing := wanted - ids:
            yield Problem(
                f'{path} has no pixel of segment {min(missing)}, which {split.path} lists: {COLORS}'
            )
            return
        if unknown := ids - wanted:
            yield Problem(
                f'{path} has pixels of {len(unknown)} segments that {split.path} does not list, '
                f'such as {min(unknown)}. They are ignored: {COLORS}',
                stops=False,
            )
            return


def segment_counts(split: Split) -> Iterator[Problem]:
    """Datasets without segments to train on."""
    if split.in_part:
        raise Unchecked(f'{split.path} was not read completely, because it is large')
    names = {category['id']: category['name'] for category in split.content['categories']}
    used = {item['img_id'] for item in split.items}
    annotations = [each for each in split.content['annotations'] if each['image_id'] in used]
    counts = Counter(
        names[segment['category_id']] for each in annotations for segment in each['segments_info']
    )
    split.counts.unit = 'segments'
    split.counts.classes = {name: counts[name] for name in split.classes}
    split.counts.annotated = sum(bool(each['segments_info']) for each in annotations)
    if not any(split.counts.classes.values()):
        yield Problem(f'{split.path} has no segments of the classes: correct segments_info')


# check → checks that have to succeed first
PANOPTIC: Checks = {
    dataset: (),
    annotation_file: (dataset,),
    panoptic_fields: (annotation_file,),
    class_names: (panoptic_fields,),
    references: (panoptic_fields,),
    reading: (references, class_names),
    image_files: (reading,),
    images: (reading,),
    channels: (images,),
    image_sizes: (images,),
    label_map_files: (reading,),
    segments: (label_map_files, images),
    segment_counts: (reading,),
    empty_class: (segment_counts,),
    loading: (segments,),
}
