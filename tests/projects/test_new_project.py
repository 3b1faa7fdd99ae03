"""Projects for folders in every format, compared with the drawn annotations."""

import copy
import json
import shlex
import shutil

import layouts
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, PARAM_SCHEDULERS
from PIL import Image

from mmgcvit.engine import check_data, load_config, rehearse
from mmgcvit.errors import UserError
from mmgcvit.models import ARCHS
from mmgcvit.projects import new_project, project
from mmgcvit.projects.recipes import BOXES, CLASSIFIER, SEGMENTOR, schedule_of

NANO = dict(
    embed_dims=8,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 2, 4),
    mlp_ratio=2,
    layer_scale_init_value=0.5,
)
CHANNELS = [8, 16, 32, 64]
WORKERS = {
    f'{split}_dataloader.{key}': value
    for split in ('train', 'val', 'test')
    for key, value in (('num_workers', 0), ('persistent_workers', False))
}
# small networks and images for the config of each folder of the fixture `drawn`
SMALL = {
    'boxes': {
        'model.backbone.window_size': 8,
        'model.neck.in_channels': CHANNELS,
        'train_dataloader.dataset.pipeline.2.scales': [(128, 96)],
        'val_dataloader.dataset.pipeline.1.scale': (128, 96),
        'test_dataloader.dataset.pipeline.1.scale': (128, 96),
    },
    'label_maps': {
        'model.backbone.window_size': 8,
        'model.decode_head.in_channels': CHANNELS,
        'model.decode_head.channels': 16,
        'model.auxiliary_head.in_channels': CHANNELS[2],
        'model.data_preprocessor.size': (96, 96),
        'train_dataloader.dataset.pipeline.2.scale': (384, 96),
        'train_dataloader.dataset.pipeline.3.crop_size': (96, 96),
        'val_dataloader.dataset.pipeline.1.scale': (384, 96),
        'test_dataloader.dataset.pipeline.1.scale': (384, 96),
    },
    'classes': {'model.head.in_channels': CHANNELS[3]},
}
SMALL['polygons'] = SMALL['boxes']


def annotations(project, split):
    return json.loads((project / f'annotations/{split}.json').read_text())


def by_image(content):
    """Size of each image, and class and annotation of its objects, by the number in its name."""
    names = {category['id']: category['name'] for category in content['categories']}
    found = {}
    for image in content['images']:
        objects = [
            (names[each['category_id']], each)
            for each in content['annotations']
            if each['image_id'] == image['id']
        ]
        found[image['file_name'][-8:]] = ((image['width'], image['height']), objects)
    return found


@pytest.mark.parametrize('form', ['boxes', 'polygons', 'voc'])
def test_converted_annotations_are_the_drawn_ones(drawn, tmp_path, form):
    new_project(tmp_path / 'new', drawn / form)
    for split in ('train', 'val'):
        content = annotations(tmp_path / 'new', split)
        ids = [each['id'] for each in content['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        found, expected = by_image(content), by_image(layouts.truth(drawn, split))
        assert found.keys() == expected.keys()
        for name, (size, objects) in expected.items():
            assert found[name][0] == size
            for (label, each), (true_label, true) in zip(found[name][1], objects, strict=True):
                assert (label, each['iscrowd']) == (true_label, 0)
                np.testing.assert_allclose(each['bbox'], true['bbox'], atol=1e-4)
                if form == 'polygons':
                    masks = each['segmentation'], true['segmentation']
                    np.testing.assert_allclose(*masks, atol=1e-4)
                    assert each['area'] == pytest.approx(true['area'], rel=0.05)  # of its pixels


def test_complete_coco_files_stay_where_they_are(drawn, tmp_path):
    data = drawn / 'shapes/coco'
    cfg = load_config(new_project(tmp_path / 'new', data))
    assert [file.name for file in (tmp_path / 'new').iterdir()] == ['config.py']
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert (dataset.data_root, dataset.metainfo.classes) == (f'{data}/', layouts.CLASSES)
        assert dataset.ann_file == f'annotations/instances_{split}2017.json'
        assert dataset.data_prefix.img == f'{split}2017/'
    assert cfg.val_evaluator.ann_file == f'{data}/annotations/instances_val2017.json'
    assert cfg.test_dataloader == cfg.val_dataloader


def spoil(content):
    """Remove what can be completed, and change what does not matter."""
    for each in content['annotations']:
        del each['iscrowd'], each['area'], each['bbox']
        each['id'] = 1
    for number, image in enumerate(content['images']):
        del image['width'], image['height']
        image['file_name'] = ('C:\\photos\\' if number % 2 else './') + image['file_name']
    content['categories'].append(dict(id=7, name='unused'))


def test_incomplete_coco_file_is_completed_and_divided(drawn, tmp_path, capsys):
    data = tmp_path / 'data'
    shutil.copytree(drawn / 'shapes/coco/train2017', data / 'pictures')
    content = layouts.truth(drawn, 'train')
    spoil(content)
    content['images'].append(dict(id=100, file_name='lost.jpg'))
    layouts.write(data / 'result.json', json.dumps(content))
    new_project(tmp_path / 'new', data)
    parts = [by_image(annotations(tmp_path / 'new', split)) for split in ('train', 'val')]
    assert [len(part) for part in parts] == [5, 1]
    expected = by_image(layouts.truth(drawn, 'train'))
    found = parts[0] | parts[1]
    assert found.keys() == expected.keys()
    for name, (size, objects) in expected.items():
        assert found[name][0] == size
        for (label, each), (true_label, true) in zip(found[name][1], objects, strict=True):
            assert (label, each['bbox'], each['iscrowd']) == (true_label, true['bbox'], 0)
            assert each['area'] == pytest.approx(true['area'], rel=0.05)
    shown = capsys.readouterr().out
    assert "images whose file does not exist in result.json: 1, for example 'lost" in shown
    assert "without an object in the training images: 1, for example 'unused'" in shown
    assert 'no validation split: 1 of 6 images, chosen at random' in shown


PALETTE = np.array([(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250)], np.uint8)


def with_palette(labels):
    image = Image.fromarray(labels, 'P')
    image.putpalette(PALETTE.ravel().tolist())
    return image


@pytest.mark.parametrize(
    ('change', 'classes', 'expected'),
    [
        (with_palette, ('class_0', 'class_1', 'class_2', 'class_3'), lambda labels: labels),
        (
            lambda labels: (labels > 0).astype(np.uint8) * 255,
            ('background', 'foreground'),
            lambda labels: labels > 0,
        ),
        (
            lambda labels: Image.fromarray(labels > 0).convert('1'),
            ('background', 'foreground'),
            lambda labels: labels > 0,
        ),
        (
            lambda labels: PALETTE[labels],
            ('color_000000', 'color_0000fa', 'color_00fa00', 'color_fa0000'),
            lambda labels: np.array([0, 3, 2, 1])[labels],
        ),
        (  # 255 is ignored, the other values are renumbered
            lambda labels: np.array([255, 3, 70, 71], np.uint8)[labels],
            ('class_3', 'class_70', 'class_71'),
            lambda labels: np.array([255, 0, 1, 2])[labels],
        ),
        (
            lambda labels: labels[..., None] * np.uint8([40, 40, 40]),
            ('class_0', 'class_40', 'class_80', 'class_120'),
            lambda labels: labels,
        ),
    ],
    ids=['palette', 'binary', 'one bit', 'colors', 'ignored', 'gray as colors'],
)
def test_label_maps_of_any_kind_get_labels_from_0(drawn, tmp_path, change, classes, expected):
    layouts.label_maps(drawn, tmp_path / 'data', change)
    cfg = load_config(new_project(tmp_path / 'new', tmp_path / 'data'))
    assert cfg.train_dataloader.dataset.metainfo.classes == classes
    assert cfg.model.decode_head.num_classes == len(classes)
    seen = []
    for split in ('train', 'val'):
        config = dict(cfg[f'{split}_dataloader'].dataset, type='mmseg.BaseSegDataset', pipeline=[])
        for item in DATASETS.build(config):
            labels = np.asarray(Image.open(item['seg_map_path']))
            drawing = next(drawn.glob(f'shapes/*/annotations/*/{name_of(item)}.png'))
            np.testing.assert_array_equal(labels, expected(layouts.values(drawing)))
            seen.append(name_of(item))
    assert len(seen) == len({*seen}) == 9


def name_of(item):
    return item['img_path'].rpartition('/')[2].partition('.')[0]


def test_label_maps_are_used_in_place_with_the_names_of_a_file(drawn, tmp_path):
    data = layouts.label_maps(drawn, tmp_path / 'data')
    layouts.write(data / 'classes.txt', 'nothing\ncircle\nrectangle\ntriangle\nstar\n')
    cfg = load_config(new_project(tmp_path / 'new', data))
    dataset = cfg.train_dataloader.dataset
    assert dataset.metainfo.classes == ('nothing', *layouts.CLASSES, 'star')
    assert dataset.data_prefix == dict(img_path='images', seg_map_path='masks')
    assert (dataset.img_suffix, dataset.seg_map_suffix) == ('.jpg', '_mask.png')
    assert not (tmp_path / 'new/label_maps').exists()


def test_labels_of_classes_do_not_depend_on_the_folders_of_the_validation(drawn, tmp_path):
    shutil.copytree(drawn / 'classes', tmp_path / 'data')
    shutil.rmtree(tmp_path / 'data/val/circle')
    layouts.copy(next(drawn.glob('classes/train/*/*.jpg')), tmp_path / 'data/val/star/a.jpg')
    layouts.copy(next(drawn.glob('classes/train/*/*.jpg')), tmp_path / 'data/loose.jpg')
    cfg = load_config(new_project(tmp_path / 'new', tmp_path / 'data'))
    assert cfg.train_dataloader.dataset.metainfo.classes == layouts.CLASSES
    lines = (tmp_path / 'new/annotations/val.txt').read_text().splitlines()
    assert {tuple(line.split('/')[1:2] + line.split(' ')[1:]) for line in lines} == {
        ('rectangle', '1'),
        ('triangle', '2'),
    }


@pytest.mark.parametrize('task', SMALL)
def test_data_of_a_project_have_no_problems(drawn, tmp_path, task, capsys, load_tool):
    project = tmp_path / "it's new"
    arguments = [str(project), '--data', str(drawn / task), '--no-rehearsal']
    load_tool('new_project').main(arguments)
    *_, outcome, command = capsys.readouterr().out.splitlines()
    assert outcome == 'no problems found'
    train = ('python', 'tools/train.py')  # in a checkout
    assert shlex.split(command) == ['next:', *train, str(project / 'config.py')]


def test_project_remains_if_the_data_have_a_problem(drawn, tmp_path, capsys, load_tool):
    data = layouts.label_maps(drawn, tmp_path / 'data')
    for path in data.glob('images/*.jpg'):
        exif = Image.Exif()
        exif[0x0112] = 6  # rotates the image, but not its label map
        Image.open(path).save(path, exif=exif)
    with pytest.raises(UserError, match=r'was written, but cannot be trained yet: correct .* run '):
        load_tool('new_project').main([str(tmp_path / 'new'), '--data', str(data)])
    assert 'rotated by their Exif orientation' in capsys.readouterr().out
    assert (tmp_path / 'new/config.py').is_file()


@pytest.mark.parametrize(
    'task',
    [
        pytest.param('label_maps', marks=pytest.mark.slow),
        *(pytest.param(t, marks=pytest.mark.nightly) for t in ('boxes', 'polygons', 'classes')),
    ],
)
def test_rehearsal(drawn, tmp_path, task, capsys):
    config = new_project(tmp_path / 'new', drawn / task, epochs=3, weights='none')
    cfg = load_config(config, options=SMALL[task] | WORKERS)
    cfg.model.backbone.arch = dict(NANO)
    assert rehearse(cfg) == 0, capsys.readouterr().out


def test_other_sizes_change_all_channels(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(project, 'open_checkpoint', lambda path: None)  # a small one is large
    monkeypatch.setattr(project, 'fit', lambda checkpoint, shapes: None)
    for data, places in (
        ('boxes', ['neck']),
        ('label_maps', ['decode_head', 'auxiliary_head']),
        ('classes', ['head']),
    ):
        config = new_project(tmp_path / data, drawn / data, arch='small', weights='/mine.pth')
        model = load_config(config).model
        assert (model.backbone.arch, model.backbone.init_cfg.checkpoint) == ('small', '/mine.pth')
        dims = list(ARCHS['small'].dims)
        found = [model[place].in_channels for place in places]
        assert (
            found == {'neck': [dims], 'decode_head': [dims, dims[2]], 'head': [dims[3]]}[places[0]]
        )


@pytest.mark.parametrize(
    ('recipe', 'images', 'epochs', 'warmup', 'interval'),
    [
        (BOXES, 30, 100, 150, 5),
        (BOXES, 1000, 20, 500, 1),
        (BOXES, 100000, 12, 500, 1),
        (SEGMENTOR, 800, 100, 500, 5),
        (CLASSIFIER, 5, 100, 10, 5),
    ],
)
def test_schedule_follows_from_the_number_of_images(recipe, images, epochs, warmup, interval):
    schedule = schedule_of(recipe, images)
    assert (schedule.epochs, schedule.warmup, schedule.val_interval) == (epochs, warmup, interval)


@pytest.mark.parametrize('epochs', [2, 40])
@pytest.mark.parametrize('task', ['boxes', 'label_maps', 'classes'])
def test_learning_rate_rises_and_falls(drawn, tmp_path, task, epochs):
    cfg = load_config(new_project(tmp_path / 'new', drawn / task, epochs=epochs))
    size = cfg.train_dataloader.batch_size
    iterations = {'boxes': 3, 'label_maps': 2, 'classes': 1}[task]
    assert cfg.default_hooks.logger.interval == 1  # a line before the end of a short epoch
    assert size == {'boxes': 2, 'label_maps': 4, 'classes': 32}[task]
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
    schedulers = []
    for config in copy.deepcopy(cfg.param_scheduler):
        if config.pop('convert_to_iter_based', False):
            config['end'] *= iterations
        config['by_epoch'] = False
        config['optimizer'] = optimizer
        schedulers.append(PARAM_SCHEDULERS.build(config))
    rates = []
    for _ in range(epochs * iterations):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) > (0.4 if epochs == 2 else 0.9)
    assert epochs == 2 or rates[-1] < 0.03


def test_sizes_follow_from_the_images(drawn, tmp_path):
    def scales(size):
        data = tmp_path / f'{size}'
        shutil.copytree(drawn / 'boxes', data)
        for image in data.glob('images/*/*.jpg'):
            Image.new('RGB', size).save(image)
        pipeline = load_config(
            new_project(tmp_path / f'new{size}', data)
        ).train_dataloader.dataset.pipeline
        return pipeline[2].scales[0], pipeline[2].scales[-1]

    assert scales((640, 480)) == ((1333, 480), (1333, 800))
    assert scales((3000, 2000)) == ((1333, 480), (1333, 800))
    assert scales((96, 96)) == ((267, 96), (267, 160))


NAMES = ['it\'s "x"', '{{ fileDirname }}', 'été 猫', 'a\tb\\n', '{{$HOME:x}}', "''''''"]


def test_odd_names_and_paths_survive(drawn, tmp_path):
    data = tmp_path / "dätä it's {{ x }}"
    layouts.yolo(drawn, tmp_path / 'link target', polygons=True)
    data.symlink_to(tmp_path / 'link target')
    layouts.write(data / 'data.yaml', f'names: {json.dumps(NAMES)}')
    project = tmp_path / 'new {{ one }} ö'
    config = new_project(project, data)
    cfg = load_config(config, options=WORKERS)
    used = [name.strip() for name in NAMES[:3]]
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == used
    assert cfg.train_dataloader.dataset.ann_file == f'{project}/annotations/train.json'
    assert not check_data(cfg, samples=2).problems
    assert [each['name'] for each in annotations(project, 'train')['categories']] == used
