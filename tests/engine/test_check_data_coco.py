"""COCO's annotations: files, ids, and what is left to train on."""

import codecs
import copy
import gzip
import json

import pytest
from checked import annotations, detection, edit, edit_each, names, texts
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from mmgcvit.engine import check_data, require_data
from mmgcvit.engine.check_data import coco
from mmgcvit.errors import UserError

ENCODED = {
    'byte-order mark': (
        lambda text: codecs.BOM_UTF8 + text.encode(),
        r"has a byte-order mark.*: save it as UTF-8 without this mark, .* sed -i '1s/",
    ),
    'UTF-16': (lambda text: text.encode('utf-16'), 'is encoded in UTF-16: save it as UTF-8'),
    'UTF-16, big end first': (
        lambda text: codecs.BOM_UTF16_BE + text.encode('utf-16-be'),
        'is encoded in UTF-16: save it as UTF-8',
    ),
    **{
        f'{code}, without a mark': (
            lambda text, code=code: text.encode(code),
            rf'is encoded in {code[:6].upper()}: save it as UTF-8, .*-f {code.upper()} -t UTF-8',
        )
        for code in ('utf-16le', 'utf-16be', 'utf-32le', 'utf-32be')
    },
    'gzip': (lambda text: gzip.compress(text.encode()), 'is compressed with gzip: decompress it'),
    'Latin-1': (
        lambda text: text.replace('circle', 'kréis').encode('latin-1'),
        "is not JSON in COCO's format .UnicodeDecodeError.*in UTF-8",
    ),
}


@pytest.mark.parametrize('kind', ENCODED)
@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_a_file_that_the_reader_of_the_training_cannot_parse_is_named(shapes, kind, split):
    path = annotations(shapes, split)
    encode, message = ENCODED[kind]
    path.write_bytes(encode(json.dumps(json.loads(path.read_text()), ensure_ascii=False)))
    with pytest.raises(UserError, match=f'{path} {message}'):
        require_data(detection(shapes))


@pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_an_id_that_occurs_twice_is_named(shapes, key, split):
    def repeat(content):
        content[key].append(copy.deepcopy(content[key][2]))
        if key == 'categories':
            content[key][-1]['name'] = 'star'

    edit(shapes, repeat, split)
    assert any(
        f"1 ids of '{key}' occur several" in text for text in texts(check_data(detection(shapes)))
    )


def test_crowds_are_nothing_to_train_on(shapes):
    for split in ('train2017', 'val2017'):
        edit_each(shapes, split, iscrowd=1)
    report = check_data(detection(shapes))
    assert [(each.name, each.stops) for each in report.problems] == [
        ('instances', True),
        ('instances', False),
    ]
    train, val = texts(report)
    number = len(json.loads(annotations(shapes).read_text())['annotations'])
    assert f'nothing is left to train on: of {number} annotations' in train
    assert f'{number} are iscrowd or ignored' in train and 'correct iscrowd' in train
    assert 'all metrics will be -1' in val
    assert [counts.annotated for _, counts in report.datasets] == [0, 0]


def test_mostly_crowds_are_a_warning(shapes):
    def change(content):
        for annotation in content['annotations'][1:]:
            annotation['iscrowd'] = 1

    edit(shapes, change, 'val2017')
    report = check_data(detection(shapes))
    (problem,) = report.problems
    total = len(json.loads(annotations(shapes, 'val2017').read_text())['annotations'])
    assert f'{total - 1} of {total} instances' in problem.text and not problem.stops
    assert sum(report.datasets[1][1].classes.values()) == 1


def test_unlabelled_images_are_meant_where_the_config_says_so(shapes):
    cfg = detection(shapes)
    edit(shapes, lambda c: c.pop('annotations'))
    cfg.train_dataloader.dataset.filter_cfg.filter_empty_gt = False
    report = check_data(cfg)
    assert texts(report) == []
    assert report.notes == [f'train: {annotations(shapes)} has no instances']


def test_a_test_set_without_labels_is_meant(shapes):
    unlabelled = annotations(shapes, 'test2017')
    content = json.loads(annotations(shapes, 'val2017').read_text())
    del content['annotations']
    unlabelled.write_text(json.dumps(content))
    cfg = detection(shapes)
    cfg.test_dataloader.dataset.ann_file = 'annotations/instances_test2017.json'
    cfg.test_evaluator.update(ann_file=str(unlabelled), format_only=True, outfile_prefix='out')
    report = check_data(cfg)
    assert texts(report) == []
    assert [name for name, _ in report.datasets] == ['train', 'val', 'test']


def test_a_class_without_an_instance_is_named(shapes):
    def change(content):
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 3]

    edit(shapes, change)
    edit(shapes, change, 'val2017')
    report = check_data(detection(shapes))
    (problem,) = report.problems
    assert problem.name == 'empty-class' and not problem.stops
    assert "train: 1 class has no instance: ('triangle',)" in problem.text
    assert any("'triangle'" in note and 'val, test' in note for note in report.notes)


def test_counts_are_of_what_the_dataset_uses(shapes):
    def change(content):
        first, second, third = content['annotations'][:3]
        first['iscrowd'], second['ignore'], third['area'] = 1, True, 0
        content['images'].append(dict(id=99, file_name='none.jpg', height=400, width=400))

    edit(shapes, change)
    report = check_data(detection(shapes))
    assert texts(report) == []  # none.jpg is not there, but is not used
    counts = report.datasets[0][1]
    number = len(json.loads(annotations(shapes).read_text())['annotations'])
    assert sum(counts.classes.values()) == number - 3
    assert any('uses 6 of 7 images' in note for note in report.notes)


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        (dict(indices=4), 'uses 4 of 6 images (indices)'),
        (dict(indices=[1, 2, 5]), 'uses 3 of 6 images (indices)'),
        (dict(indices=4, filter_cfg=dict(min_size=350)), "'min_size': 350}, indices)"),
        (dict(indices=6, filter_cfg=dict(min_size=350)), "'min_size': 350})"),
    ],
)
def test_what_reduces_the_images_is_named(shapes, settings, reason):
    cfg = detection(shapes)
    cfg.skip_checks = ['empty-class']
    sizes = [(640, 480)] * 5 + [(300, 640)]
    ids = [image['id'] for image in json.loads(annotations(shapes).read_text())['images']]

    def resize(content):
        for image in content['images']:
            image['width'], image['height'] = sizes[ids.index(image['id'])]

    edit(shapes, resize)
    cfg.train_dataloader.dataset.update(settings)
    report = check_data(cfg, splits=('train',))
    assert any(note.endswith(reason) for note in report.notes), report.notes
    cfg.train_dataloader.dataset.indices = 0
    (found,) = (text for text in texts(check_data(cfg, splits=('train',))) if 'is left' in text)
    assert 'indices drops all 6' in found and ' or indices' in found


def test_instances_of_images_that_the_filter_drops_are_not_counted(shapes):
    cfg = detection(shapes)
    content = json.loads(annotations(shapes).read_text())
    small = {
        image['id'] for image in content['images'] if min(image['width'], image['height']) < 350
    }
    assert 0 < len(small) < 6
    cfg.train_dataloader.dataset.filter_cfg.min_size = 350
    cfg.skip_checks = ['empty-class']
    counts = check_data(cfg).datasets[0][1]
    assert counts.images == 6 - len(small)
    left = [each for each in content['annotations'] if each['image_id'] not in small]
    assert sum(counts.classes.values()) == len(left)


def test_iscrowd_is_needed_where_coco_evaluates(shapes):
    edit(shapes, lambda c: c['annotations'][0].pop('iscrowd'), 'val2017')
    (text,) = texts(check_data(detection(shapes)))
    assert 'val, test: ' in text and "lack 'iscrowd'" in text


def turn(path, orientation):
    image = Image.open(path).convert('RGB')
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def test_sizes_are_compared_as_the_loading_transform_turns_them(shapes):
    turn(shapes / 'coco/train2017/000000000003.jpg', 8)
    cfg = detection(shapes)
    (text,) = texts(check_data(cfg))
    assert '000000000003.jpg is' in text and "set color_type='color_ignore_orientation'" in text
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert texts(check_data(cfg)) == []


@DATASETS.register_module()
class ListedDataset(CocoDataset):
    """A dataset whose annotations mmdet reads, but its subclass not completely."""

    def parse_data_info(self, raw_data_info):
        raw_data_info['img_info'] = raw_data_info['raw_img_info']['license_of_this_image']
        return super().parse_data_info(raw_data_info)


def test_a_file_that_the_class_of_the_dataset_cannot_read_is_named(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset.type = 'mmengine.ListedDataset'
    (text,) = texts(check_data(cfg))
    assert 'ListedDataset cannot read' in text and "KeyError: 'license_of_this_image'" in text


@TRANSFORMS.register_module()
class LoadAttributes:
    def __call__(self, results):
        results['colours'] = [instance['colour'] for instance in results['instances']]
        return results


def test_annotations_that_a_loading_transform_cannot_load_are_named(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='mmengine.LoadAttributes'))
    (text,) = texts(check_data(cfg))
    assert 'LoadAttributes cannot load the annotations of' in text and '000000000001.jpg' in text
    assert "KeyError: 'colour'" in text


def test_a_large_file_is_said_not_to_be_read(shapes, monkeypatch, log):
    monkeypatch.setattr(coco, 'LARGE', 100)
    edit_each(shapes, iscrowd=1)
    require_data(detection(shapes))
    assert any(f'{annotations(shapes)} was not read completely' in line for line in log)
    assert names(check_data(detection(shapes))) == ['instances']


def test_iscrowd_has_to_be_a_number_where_coco_evaluates(shapes):
    for split in ('train2017', 'val2017'):
        edit(shapes, lambda c: c['annotations'][1].update(iscrowd=None), split)
    (text,) = texts(check_data(detection(shapes)))
    assert text.startswith('[iscrowd] val, test: 1 annotations') and 'not a number' in text


@pytest.mark.parametrize(
    ('new_id', 'fault', 'stops'),
    [
        ('b7', 'that is not a number', True),
        (None, 'that is not a number', True),
        (0, 'id 0', False),
    ],
)
def test_ids_with_which_coco_cannot_evaluate_are_named(shapes, new_id, fault, stops):
    for split in ('train2017', 'val2017'):
        edit(shapes, lambda c: c['annotations'][2].update(id=new_id), split)
    (problem,) = check_data(detection(shapes)).problems
    assert problem.text.startswith('[annotation-ids] val, test: 1 annotations')
    assert fault in problem.text and 'number the annotations from 1' in problem.text
    assert problem.stops is stops


def test_ids_of_images_that_are_numbers_and_text_are_named(shapes):
    def rename(content, which):
        for image in content['images'][which]:
            for annotation in content['annotations']:
                if annotation['image_id'] == image['id']:
                    annotation['image_id'] = f'photo {image["id"]}'
            image['id'] = f'photo {image["id"]}'

    edit(shapes, lambda content: rename(content, slice(2)), 'val2017')
    (text,) = texts(check_data(detection(shapes)))
    assert text.startswith('[annotation-ids] val, test: ') and 'cannot sort' in text
    edit(shapes, lambda content: rename(content, slice(2, None)), 'val2017')
    assert texts(check_data(detection(shapes))) == []
