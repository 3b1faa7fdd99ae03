"""Checks of classification data: folders of classes, lists of images, labels, and windows."""

import copy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from checked import SPLITS, apply_remedy, names, texts
from PIL import Image

from mmgcvit.engine import check_data, load_config
from mmgcvit.engine.check_data import Counts, Report

CONFIG = Path(__file__).parents[2] / 'configs/classification/gcvit_shapes.py'
CLASSES = ('circle', 'rectangle', 'triangle')


@pytest.fixture(scope='module')
def published():
    return load_config(CONFIG)


@pytest.fixture
def root(tmp_path):
    """Two images per class for training, and one for validation."""
    for split, count in (('train', 2), ('val', 1)):
        for name in CLASSES:
            for number in range(count):
                path = tmp_path / split / name / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((9, 8, 3), number, np.uint8)).save(path)
    return tmp_path


def config(published, root, **options):
    cfg = copy.deepcopy(published)
    cfg.merge_from_dict({f'{s}_dataloader.dataset.data_root': str(root) for s in SPLITS})
    cfg.merge_from_dict(options)
    return cfg


def of_folders(published, root, **options):
    """A config whose classes are the folders."""
    cfg = config(published, root, **options)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.pop('metainfo')
    return cfg


def check(cfg, fast=False) -> Report:
    return check_data(cfg, fast=fast, splits=('train', 'val'))


@pytest.mark.parametrize('make', [config, of_folders])
@pytest.mark.parametrize('fast', [False, True])
def test_good_data_have_no_problems(published, root, make, fast):
    report = check(make(published, root), fast)
    assert (report.problems, report.notes) == ([], [])
    if not fast:
        (_, train), (_, val) = report.datasets
        assert (train.images, val.images, train.unit) == (6, 3, 'images')
        assert train.classes == dict.fromkeys(CLASSES, 2)


def remove(root, *paths):
    for path in paths:
        shutil.rmtree(root / path)


@pytest.mark.parametrize('fast', [False, True])
def test_a_class_that_validation_lacks_would_shift_its_labels(published, root, fast):
    remove(root, 'val/circle')
    report = check(of_folders(published, root), fast)
    (text,) = texts(report)
    assert text.startswith(
        "[folder-labels] the folders of train and val differ: val has no folder ('circle',)."
    )
    # with names in the config, mmpretrain would end in an assertion
    (text, *_) = texts(check(config(published, root), fast))
    message = "has 2 folders, but there are 3 classes; missing: ('circle',): make one folder"
    assert 'val: ' in text and message in text
    (root / 'val/circle').mkdir()  # the remedy
    report = check(config(published, root), fast)
    assert report.problems == []
    assert report.notes == ["val: 1 class has no images: ('circle',)"]


def test_other_folders_of_the_same_number_are_found(published, root):
    (root / 'val/circle').rename(root / 'val/zebra')
    cfg = of_folders(published, root)
    assert names(check(cfg)) == ['folder-labels']
    assert "train has no folder ('zebra',)" in texts(check(cfg))[0]


@pytest.mark.parametrize('fast', [False, True])
def test_a_class_without_images_is_never_predicted(published, root, fast):
    for file in (root / 'train/circle').iterdir():
        file.unlink()
    (problem,) = check(config(published, root), fast).problems
    assert not problem.stops
    assert "1 class has no images: ('circle',); they will never be predicted" in problem.text


def test_folders_of_classes_in_another_order_than_their_names(published, root):
    order = ('triangle', 'circle', 'rectangle')
    cfg = config(published, root)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=order)
    assert names(check(cfg)) == ['class-folders'] * 2
    assert (
        "in alphabetical order, which are the labels, are ('circle', 'rectangle',"
        in (texts(check(cfg))[0])
    )


def test_a_folder_with_another_name_than_its_class_has_to_be_renamed(published, root):
    (root / 'val/triangle').rename(root / 'val/Triangle')  # sorted before all others
    (text,) = texts(check(config(published, root)))
    assert "has folders ('Triangle',) instead of ('triangle',)" in text
    assert 'rename them as the classes' in text and 'set ' not in text


def test_a_folder_that_is_not_a_class(published, root):
    (root / 'train/__MACOSX').mkdir()
    (text,) = texts(check(config(published, root)))
    assert "has 4 folders, but there are 3 classes; unexpected: ('__MACOSX',): make" in text


def test_a_symlink_to_itself(published, root):
    (root / 'train/circle/loop').symlink_to('loop')
    (text,) = texts(check(config(published, root)))
    assert 'the dataset cannot be read' in text and 'circle/loop' in text


def test_hidden_folders_count_as_classes(published, root):
    (root / 'train/.ipynb_checkpoints').mkdir()
    text = texts(check(of_folders(published, root)))[0]
    assert 'the hidden folder' in text and '.ipynb_checkpoints counts as a class' in text


@pytest.mark.parametrize('fast', [False, True])
def test_images_outside_of_class_folders(published, root, fast):
    (root / 'train/circle/0.png').rename(root / 'train/0.png')
    (problem,) = check(config(published, root), fast).problems
    assert not problem.stops and '1 images are in' in problem.text
    assert 'they are not used; move them into the folder of their class' in problem.text
    # ImageNet's validation images as they are downloaded
    for name in CLASSES:
        (root / 'val' / name / '0.png').rename(root / f'val/{name}.png')
        (root / 'val' / name).rmdir()
    problem = check(config(published, root), fast).problems[1]
    assert problem.stops and '3 images are in' in problem.text
    assert 'make a folder for each class in it and move the images there' in problem.text


@pytest.mark.parametrize('fast', [False, True])
def test_folders_without_images_and_without_existence(published, root, fast):
    remove(root, 'val')
    (text,) = texts(check(config(published, root), fast))
    assert 'val does not exist: put the images there, or set its path with --cfg-options' in text
    for name in CLASSES:
        (root / 'val' / name).mkdir(parents=True)
    (text,) = texts(check(config(published, root), fast))
    assert text.startswith('[reading] val: there are no images (.bmp, .jpeg, .jpg, .pgm,')
    (text, *_) = texts(check(config(published, root / 'nowhere'), fast))
    assert 'nowhere does not exist (current folder:' in text


def test_one_class_is_not_learned(published, root):
    remove(root, 'train/circle', 'train/rectangle', 'val/circle', 'val/rectangle')
    options = {'model.head.num_classes': 1, 'data_preprocessor.num_classes': 1}
    report = check(of_folders(published, root, **options))
    assert 'there is only one class' in texts(report)[0]


def test_broken_images_are_named(published, root):
    path = root / 'train/circle/1.png'
    path.write_bytes(path.read_bytes()[:20])
    (text,) = texts(check(config(published, root)))
    assert text.startswith('[images] train: 1 of 6 images that were opened are broken')
    assert str(path) in text


@pytest.mark.parametrize(
    ('lines', 'expected'),
    [
        (['circle/0.png 0', 'triangle/1.png 2'], None),
        (
            ['circle/0.png 0', 'circle/1.png 1', 'triangle/1.png 3'],
            '1 of 3 images of train have labels out of range, such as 3: the 3 classes are 0 to 2',
        ),
        (
            ['circle/0.png 0', 'triangle/1.png 2', 'circle/0.png -1'],
            '1 of 3 images of train have labels out of range, such as -1',
        ),
        ([], 'there are no images (.bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif) in the list'),
        (['0'], 'line 1 of '),
        (['circle/0.png circle'], "train.txt is 'circle/0.png circle', but has to be the path of"),
        (['circle/0.png 0', '', 'circle/1.png 0'], 'line 2 of '),
        (['circle/0.png 0', 'circle/9.png 1'], '1 of 2 images are missing, for example'),
        (None, 'train.txt does not exist: put it there, or change train_dataloader.dataset.ann_f'),
        (['circle/0.png 0', 'circle/1.png 0'], "all images are of the class 'circle'"),
    ],
)
@pytest.mark.parametrize('with_names', [True, False])
def test_lists_of_images(published, root, lines, expected, with_names):
    if lines is not None:
        (root / 'train.txt').write_text(''.join(f'{line}\n' for line in lines))
    make = config if with_names else of_folders
    cfg = make(published, root, **{'train_dataloader.dataset.ann_file': 'train.txt'})
    found = [problem.text for problem in check(cfg).problems if problem.stops]
    if not with_names and expected and 'all images' in expected:
        expected = 'there is only one class'
    assert len(found) == (expected is not None), found
    assert not expected or expected in found[0]


def test_heads_preprocessors_and_metrics_have_the_same_number_of_classes(published, root):
    options = {
        'model.head.num_classes': 1000,
        'data_preprocessor.num_classes': 1000,
        'val_evaluator.topk': (1, 5),
    }
    cfg = config(published, root, **options)
    (text,) = texts(check(cfg))
    assert '[class-counts] model.head.num_classes is 1000, but the train dataset has 3' in text
    apply_remedy(cfg, text)
    preprocessor, topk = texts(check(cfg))
    assert 'data_preprocessor.num_classes is 1000, but model.head.num_classes is 3' in preprocessor
    assert 'val_evaluator.topk is (1, 5), but there are 3 classes' in topk
    assert '"val_evaluator.topk=(1,)"' in topk
    apply_remedy(cfg, preprocessor)
    cfg.val_evaluator.topk = (1,)
    assert texts(check(cfg)) == []


@pytest.mark.parametrize(
    ('settings', 'warned'),
    [
        (dict(image_size=None), True),
        (dict(image_size=None, window_size=24), True),
        (dict(image_size=None, window_size=[24, 24, 24, 24]), True),
        # the published windows with the detector's query generators
        (dict(image_size=None, window_size=(7, 7, 14, 7)), True),
        (dict(image_size=None, window_size=(7, 7, 14, 7), query_downsamples=(3, 2, 0, 0)), False),
        (dict(image_size=96), False),
        (dict(image_size=96, window_size=24), True),
        (dict(type='mmgcvit.GCViTVariant', variant='global_kv', image_size=None), True),
    ],
)
def test_a_classifier_with_the_windows_of_a_detector_is_a_warning(
    published, root, settings, warned
):
    cfg = config(published, root)
    cfg.model.backbone.update(settings)
    problems = check(cfg).problems
    assert len(problems) == warned
    for problem in problems:
        assert problem.name == 'windows' and not problem.stops
        size = 'model.backbone.image_size=224, or the height and width'
        assert (size in problem.text) == (settings['image_size'] is None)
        apply_remedy(cfg, problem.text)
        assert check(cfg).problems == []


def test_folders_that_the_fast_check_does_not_search_are_not_called_empty(
    published, root, monkeypatch
):
    monkeypatch.setattr(sys.modules['mmgcvit.engine.check_data.image_folders'], 'FEW', 2)
    report = check(config(published, root), fast=True)
    assert report.problems == [] and report.notes == []


def test_of_many_classes_the_rarest_are_listed():
    counts = Counts(images=5050, annotated=5050, classes={f'class {i}': i for i in range(1, 301)})
    report = Report(datasets=[('train', counts)])
    lines = report.table().splitlines()
    rows = lines[lines.index('class                            train') + 1 :]
    assert [row.split() for row in rows[:20]] == [['class', str(i), str(i)] for i in range(1, 21)]
    assert rows[20:] == ['… and 280 more classes']
