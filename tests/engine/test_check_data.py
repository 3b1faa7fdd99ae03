"""What tools/check_data.py and the start of a training say of good and of bad data."""

import json
import re
import shutil
from pathlib import Path

import forks
import numpy as np
import pytest
from checked import (
    DETECTION,
    SEGMENTATION,
    annotations,
    detection,
    edit,
    label_files,
    segmentation,
    texts,
)
from PIL import Image

from mmgcvit.engine import check_data, require_data
from mmgcvit.engine.check_data import NAMES as NAMES_OF_CHECKS
from mmgcvit.engine.check_data import coco
from mmgcvit.errors import UserError

NAMES = ['background', 'circle', 'rectangle', 'triangle']


def as_options(cfg_options):
    return ['--cfg-options', *(f'{key}={value}' for key, value in cfg_options.items())]


def test_table_counts_a_detection_set_and_exit_code_is_0(shapes, capsys, load_tool):
    root = shapes / 'coco'
    options = {f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val', 'test')}
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = annotations(shapes, 'val2017')
    load_tool('check_data').main([DETECTION, *as_options(options)])
    printed = capsys.readouterr().out
    assert 'no problems found' in printed
    rows = {line[:16].strip(): line[16:].split() for line in printed.splitlines()}
    for name, split in (('train', 'train2017'), ('val, test', 'val2017')):
        content = json.loads(annotations(shapes, split).read_text())
        total = len(content['annotations'])
        number = str(len(content['images']))
        assert rows[name] == [number, number, str(total), 'instances']
    train, val = (json.loads(annotations(shapes, s).read_text()) for s in ('train2017', 'val2017'))
    for label, name in enumerate(NAMES[1:], 1):
        counts = [
            str(sum(a['category_id'] == label for a in content['annotations']))
            for content in (train, val)
        ]
        assert rows[name] == counts


def test_table_counts_a_segmentation_set(shapes, capsys, load_tool):
    root = shapes / 'ADEChallengeData2016'
    options = {f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val', 'test')}
    load_tool('check_data').main([SEGMENTATION, *as_options(options)])
    rows = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()}
    pixels = np.zeros(4, int)
    for path in sorted(root.glob('annotations/training/*.png')):
        pixels += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=4)
    assert [int(rows[name][0]) for name in NAMES] == pixels.tolist()
    assert rows['train'] == ['6', '6', str(pixels.sum()), 'pixels']


def test_samples_and_full_say_how_many_images_are_opened(shapes, capsys, load_tool):
    root = shapes / 'ADEChallengeData2016'
    # neither the first nor the last
    path = sorted(root.glob('images/training/*.jpg'))[1]
    path.write_bytes(path.read_bytes()[:2000])
    options = {f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val', 'test')}
    main = load_tool('check_data').main
    main([SEGMENTATION, '--samples', '2', *as_options(options)])
    assert 'no problems found' in capsys.readouterr().out
    with pytest.raises(UserError, match='1 problem found, listed above'):
        main([SEGMENTATION, '--samples', '2', '--full', *as_options(options)])
    printed = capsys.readouterr().out
    assert '1 of 6 images that were opened are broken' in printed and path.name in printed
    with pytest.raises(UserError, match='--samples must be at least 1, got 0'):
        main([SEGMENTATION, '--samples', '0'])


def test_what_is_checked_is_shown_on_a_terminal_alone(shapes, capsys, load_tool, monkeypatch):
    shown = []
    check_data(detection(shapes), samples=None, show=shown.append)
    assert shown[0] == 'train: dataset' and shown[-1] == 'mask-settings'
    assert 'train: images, 0 of 6' in shown and 'val, test: masks' in shown
    tool = load_tool('check_data')
    capsys.readouterr()
    tool.show('train: masks')
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(tool.sys.stderr, 'isatty', lambda: True)
    tool.show('train: masks')
    assert 'train: masks' in capsys.readouterr().err


def drop_image(shapes):
    (shapes / 'coco/train2017/000000000002.jpg').unlink()


def cut_image(shapes):
    path = shapes / 'coco/train2017/000000000001.jpg'
    path.write_bytes(path.read_bytes()[:3000])


def resized_image(shapes):
    Image.new('RGB', (30, 20)).save(shapes / 'coco/train2017/000000000001.jpg')


def change_annotation(key, value):
    return lambda shapes: edit(shapes, lambda c: c['annotations'][0].update({key: value}))


def change_file(change):
    return lambda shapes: edit(shapes, change)


def swap_categories(content):
    content['categories'].reverse()


def repeat_id(content):
    first, second = content['annotations'][:2]
    second['id'] = first['id']


BAD_DETECTION = {
    'no root': (
        lambda shapes: shutil.rmtree(shapes / 'coco'),
        'data_root .* does not exist .*--cfg-options train_dataloader.dataset.data_root=PATH',
    ),
    'no annotation file': (
        lambda shapes: annotations(shapes).unlink(),
        'the annotation file .*instances_train2017.json does not exist: .*ann_file=PATH',
    ),
    'not JSON': (
        lambda shapes: annotations(shapes).write_text('id,class\n1,2\n'),
        "instances_train2017.json is not JSON in COCO's format",
    ),
    'truncated': (
        lambda shapes: annotations(shapes).write_text(annotations(shapes).read_text()[:-200]),
        "instances_train2017.json is not JSON in COCO's format",
    ),
    'a list': (
        lambda shapes: annotations(shapes).write_text('[]'),
        'it holds a list',
    ),
    'no categories': (change_file(lambda c: c.pop('categories')), "has no list 'categories'"),
    'no annotations': (change_file(lambda c: c.pop('annotations')), "has no list 'annotations'"),
    'image without size': (
        change_file(lambda c: c['images'][1].pop('width')),
        "entry 1 of 'images' lacks one of id, file_name, height, width",
    ),
    'image with null for a size': (
        change_file(lambda c: c['images'][1].update(width=None)),
        "entry 1 of 'images' lacks one of id, file_name, height, width, or has a value that is "
        'not a number',
    ),
    'annotation with null for an area': (
        change_file(lambda c: c['annotations'][2].update(area=None)),
        "entry 2 of 'annotations' lacks one of",
    ),
    'annotation without area': (
        change_file(lambda c: c['annotations'][2].pop('area')),
        "entry 2 of 'annotations' lacks one of",
    ),
    'no images': (change_file(lambda c: c['images'].clear()), 'lists no images'),
    'nothing annotated': (
        change_file(lambda c: c['annotations'].clear()),
        'no image is left for training: filter_cfg=.* drops all 6',
    ),
    'no folder': (
        lambda shapes: shutil.rmtree(shapes / 'coco/train2017'),
        'the folder of images .*train2017 does not exist: .*data_prefix.img=PATH',
    ),
    'missing image': (drop_image, '1 of 6 images are missing, for example .*000000000002.jpg'),
    'broken image': (cut_image, 'opened are broken, for example .*000000000001.jpg'),
    'other size': (resized_image, r'000000000001.jpg is 30×20, its entry has \d+×\d+'),
    'other name': (
        change_file(lambda c: c['categories'][0].update(name='disc')),
        "1 of the 3 classes .* for example 'circle': its 3 categories are "
        ".'disc', 'rectangle', 'triangle'.",
    ),
    'other order': (change_file(swap_categories), "set .*to .'triangle', 'rectangle', 'circle'."),
    'same name': (
        change_file(lambda c: c['categories'].append(dict(id=9, name='circle'))),
        "several categories named 'circle'",
    ),
    'negative box': (change_annotation('bbox', [0, 0, -5, 9]), 'bbox that is not four finite'),
    'box of text': (change_annotation('bbox', ['0', 0, 5, 9]), 'bbox that is not four finite'),
    'no mask': (change_annotation('segmentation', []), 'have no segmentation, which the mask head'),
    'id twice': (change_file(repeat_id), "1 ids of 'annotations' occur several times"),
}


@pytest.mark.parametrize('case', BAD_DETECTION)
def test_bad_detection_data_stop_a_training_in_one_line(case, shapes):
    spoil, message = BAD_DETECTION[case]
    cfg = detection(shapes)
    assert texts(check_data(cfg)) == []
    spoil(shapes)
    with pytest.raises(UserError, match=message) as caught:
        require_data(cfg)
    lines = str(caught.value).splitlines()
    assert sum('train: ' in line for line in lines) == 1


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('bbox', [1, 2, 900, 9], '1 annotations .* have a box that reaches beyond its image'),
        ('image_id', 77, 'have an image_id that no image has'),
        ('category_id', 77, 'have a category_id that no category has'),
    ],
)
def test_what_training_survives_is_a_problem_but_does_not_stop_it(shapes, log, key, value, message):
    cfg = detection(shapes)
    change_annotation(key, value)(shapes)
    report = check_data(cfg)
    assert [problem.stops for problem in report.problems] == [False]
    assert re.search(message, texts(report)[0])
    require_data(cfg)
    assert texts(report)[0] in log


def test_all_problems_are_listed_with_a_number(shapes, capsys, load_tool):
    root = shapes / 'coco'
    options = {f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val', 'test')}
    options['model.roi_head.bbox_head.1.num_classes'] = 80
    drop_image(shapes)
    swapped = '[circle,triangle,rectangle]'
    options['train_dataloader.dataset.metainfo.classes'] = swapped
    with pytest.raises(UserError, match='6 problems found, listed above'):
        load_tool('check_data').main([DETECTION, *as_options(options)])
    printed = capsys.readouterr().out
    for part in (
        '1. [class-names] train: the classes of the config are in another order',
        '2. [image-files] train: 1 of 6 images are missing',
        '3. [evaluator-files] val_evaluator.ann_file is data/shapes/coco/annotations/instances_val',
        '4. [evaluator-files] test_evaluator.ann_file is',
        '5. [class-counts] the classes of train and of val, test differ',
        '6. [class-counts] model.roi_head.bbox_head.1.num_classes is 80, but the train dataset has '
        '3 classes: set --cfg-options model.roi_head.bbox_head.1.num_classes=3',
    ):
        assert f'\n{part}' in printed, part


def test_a_single_class_without_its_comma_is_noticed(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset.metainfo.classes = 'circle'
    assert 'metainfo.classes is not a tuple of names' in texts(check_data(cfg))[0]


def test_unused_categories_are_a_note(shapes):
    cfg = detection(shapes)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo.classes = ('circle', 'triangle')
    for head in (*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = 2
    report = check_data(cfg)
    assert texts(report) == []
    assert any('1 categories of' in note and "'rectangle'" in note for note in report.notes)
    assert 'rectangle' not in report.table()


def test_wrapped_datasets_are_looked_into(shapes):
    cfg = detection(shapes)
    inner = cfg.train_dataloader.dataset
    other = dict(inner, data_root='/nowhere')
    wrapped = dict(type='ConcatDataset', datasets=[inner, other])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=wrapped)
    (text,) = texts(check_data(cfg))
    assert 'train_dataloader.dataset.dataset.datasets.1.data_root=PATH' in text


def test_a_dataset_of_another_kind_is_said_to_be_unchecked(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset = dict(type='VOCDataset', data_root='/nowhere')
    report = check_data(cfg, splits=('train',))
    assert texts(report) == []
    assert report.notes == [
        'train: not checked, VOCDataset is neither a COCO dataset nor a segmentation dataset of '
        'folders'
    ]


def test_a_dataset_that_does_not_exist_is_named(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset.type = 'CocoDatasets'
    assert "type='CocoDatasets' is not a known dataset" in texts(check_data(cfg))[0]


def test_large_annotation_files_are_read_in_part_only_before_training(shapes, monkeypatch):
    cfg = detection(shapes)
    monkeypatch.setattr(coco, 'LARGE', 100)
    report = check_data(cfg, fast=True)
    assert texts(report) == []
    assert [found.images for _, found in report.datasets] == [None, None]
    assert [found.images for _, found in check_data(cfg).datasets] == [6, 3]
    # what can be seen from the two ends still is
    drop_image(shapes)
    edit(shapes, lambda c: c['categories'][2].update(name='pyramid'))
    first, second = texts(check_data(cfg, fast=True, splits=('train',)))
    assert "'triangle'" in first and '000000000002.jpg' in second
    content = annotations(shapes).read_text()
    annotations(shapes).write_text(content[:-3])
    (text,) = texts(check_data(cfg, fast=True, splits=('train',)))
    assert 'it may be truncated' in text


def rewrite(change):
    def spoil(shapes):
        path = label_files(shapes)[0]
        Image.fromarray(change(np.asarray(Image.open(path)).copy())).save(path)

    return spoil


def with_label(value):
    def change(labels):
        labels[:5, :5] = value
        return labels

    return rewrite(change)


BAD_SEGMENTATION = {
    'no root': (
        lambda shapes: shutil.rmtree(shapes / 'ADEChallengeData2016'),
        'data_root .* does not exist',
    ),
    'no label folder': (
        lambda shapes: shutil.rmtree(label_files(shapes)[0].parent),
        'the folder .*annotations/training does not exist: .*data_prefix.seg_map_path=PATH',
    ),
    'no images': (
        lambda shapes: [p.unlink() for p in shapes.glob('ADE*/images/training/*')],
        r'there are no images \*.jpg below .*images/training',
    ),
    'missing label map': (
        lambda shapes: label_files(shapes)[2].unlink(),
        '1 of 6 label maps are missing, for example .*_00000003.png',
    ),
    'label 4 of 4': (
        with_label(4),
        'label values of no class, such as 4 .the 4 classes are 0 to 3, and 255 is ignored.: ',
    ),
    'colours': (
        rewrite(lambda labels: np.stack([labels] * 3, -1)),
        'hold colors .3 channels., not one label value per pixel',
    ),
    'sixteen bits': (
        rewrite(lambda labels: labels.astype(np.uint16) + 300),
        'have label values above 255',
    ),
    'other size': (rewrite(lambda labels: labels[:-3]), 'have another size than their images'),
    'not an image': (
        lambda shapes: label_files(shapes)[0].write_text('no'),
        'cannot be read as an image',
    ),
}


@pytest.mark.parametrize('case', BAD_SEGMENTATION)
def test_bad_segmentation_data_stop_a_training_in_one_line(case, shapes):
    spoil, message = BAD_SEGMENTATION[case]
    cfg = segmentation(shapes)
    assert texts(check_data(cfg)) == []
    spoil(shapes)
    with pytest.raises(UserError, match=message) as caught:
        require_data(cfg)
    assert sum('train: ' in line for line in str(caught.value).splitlines()) == 1


def test_label_255_is_ignored(shapes):
    with_label(255)(shapes)
    assert texts(check_data(segmentation(shapes))) == []


def test_reduce_zero_label_shifts_the_values(shapes):
    cfg = segmentation(shapes)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.reduce_zero_label = True
    report = check_data(cfg)
    (text,) = texts(report)  # 1 to 3 become 0 to 2
    assert 'train: 1 class has no pixel' in text and "'triangle'" in text
    counts = report.datasets[0][1].classes
    assert counts['triangle'] == 0 and counts['background'] > 0
    # the transform and the dataset have to agree
    cfg.train_dataloader.dataset.pipeline[1]['reduce_zero_label'] = False
    assert 'correct LoadAnnotations in' in texts(check_data(cfg))[0]


def test_segmentation_heads_need_the_number_of_classes(shapes):
    cfg = segmentation(shapes)
    cfg.model.auxiliary_head.num_classes = 150
    (text,) = texts(check_data(cfg))
    assert 'model.auxiliary_head.num_classes is 150, but the train dataset has 4 classes' in text


def test_ade20k_takes_only_its_own_class_names(shapes):
    cfg = segmentation(shapes)
    cfg.train_dataloader.dataset.type = 'ADE20KDataset'
    assert 'is not a subset of classes' in texts(check_data(cfg))[0]


def test_test_data_do_not_hinder_a_training(shapes):
    cfg = detection(shapes)
    cfg.test_dataloader.dataset.data_root = '/nowhere'
    require_data(cfg)
    assert 'test: data_root /nowhere does not exist' in texts(check_data(cfg))[0]


PROCESS = """
import sys
from mmengine.config import Config
from mmgcvit.engine import require_data, run_tool
from mmgcvit.engine.launch import start_processes

cfg = Config.fromfile(sys.argv[1])
run_tool(lambda: (start_processes(Config(dict(launcher='pytorch')), 'cpu'), require_data(cfg)))
"""


def test_all_processes_end_when_the_first_finds_bad_data(shapes, tmp_path):
    annotations(shapes).unlink()
    detection(shapes).dump(tmp_path / 'config.py')
    (tmp_path / 'process.py').write_text(PROCESS)
    settings = dict(ranks=2, out=tmp_path / 'out', timeout=60)
    code, printed = forks.run(tmp_path / 'process.py', tmp_path / 'config.py', **settings)
    assert code == 1
    (error,) = (line for line in printed.splitlines() if line.startswith('error: '))
    assert 'instances_train2017.json does not exist' in error


def test_every_check_is_in_the_docs_with_its_name():
    page = (Path(__file__).parents[2] / 'docs' / 'your_data.md').read_text()
    table = page[page.index('| check | finds |') :].partition('\n\n')[0]
    assert set(re.findall(r'^\| `([a-z-]+)` \|', table, re.MULTILINE)) == set(NAMES_OF_CHECKS)
