"""The shapes dataset: its contents, its readers, and the handling of the target folder."""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmgcvit.datasets import draw_shapes
from mmgcvit.datasets import scene as scene_module
from mmgcvit.datasets import shapes as module
from mmgcvit.errors import UserError

CLASSES = ('circle', 'rectangle', 'triangle')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'drawn'
    assert draw_shapes(folder, num_train=8, num_val=4, progress=False)
    return folder


@pytest.fixture(scope='module')
def scenes():
    return [module.draw_scene(5, 0, index) for index in range(1, 25)]


@pytest.fixture(scope='module')
def coco(root):
    from pycocotools.coco import COCO

    return COCO(str(root / 'coco/annotations/instances_train2017.json'))


def _hashes(root):
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _labels(root, index):
    path = root / f'ADEChallengeData2016/annotations/training/ADE_train_{index:08d}.png'
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


# Contents of the images


def test_sizes_and_numbers(scenes):
    sizes = np.array([scene.image.shape[:2] for scene in scenes])
    assert sizes.min() >= 200 and sizes.max() <= 480
    assert np.ptp(sizes) > 200
    assert (sizes[:, 0] != sizes[:, 1]).all()
    numbers = {len(scene.shapes) for scene in scenes}
    assert min(numbers) >= 1 and max(numbers) <= 4 and len(numbers) == 4


def test_every_shape_is_well_visible_and_without_holes(scenes):
    for scene in scenes:
        for shape, mask in zip(scene.shapes, scene.visible, strict=True):
            assert mask.sum() >= 0.65 * shape.area
            rows, columns = np.nonzero(mask)
            assert min(np.ptp(rows), np.ptp(columns)) + 1 >= 40
            # with a margin, the complement of a mask without holes is connected
            outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
            assert cv2.connectedComponents(outside, connectivity=4)[0] == 2


@pytest.mark.parametrize(
    ('pieces', 'area', 'accepted'),
    [
        ([(10, 55, 10, 55)], 2025, True),
        ([(10, 55, 10, 55)], 3100, True),
        ([(10, 55, 10, 55)], 3200, False),  # 63 % is visible
        ([(10, 49, 10, 90)], 3120, False),  # 39 pixels high
        ([(10, 55, 10, 55), (60, 66, 10, 90)], 2505, True),  # two parts
        ([(row, row + 6, 10, 16) for row in range(0, 96, 8)], 432, False),  # small parts
        ([], 100, False),
    ],
)
def test_what_counts_as_well_visible(pieces, area, accepted):
    mask = np.zeros((100, 100), bool)
    for top, bottom, left, right in pieces:
        mask[top:bottom, left:right] = True
    assert scene_module._well_visible(mask, area) is accepted


def test_holes_are_rejected():
    mask = np.zeros((100, 100), bool)
    mask[10:60, 10:60] = True
    assert scene_module._well_visible(mask, 2500)
    mask[30, 30] = False
    assert not scene_module._well_visible(mask, 2500)


def test_shapes_occlude_each_other(scenes):
    hidden = []
    for scene in scenes:
        for shape, mask in zip(scene.shapes, scene.visible, strict=True):
            inside = shape.depth(*mask.shape) > 0
            assert not (mask & ~inside).any()
            hidden.append(1 - mask.sum() / inside.sum())
        assert np.sum(scene.visible, axis=0).max() <= 1
    assert 0.15 < np.mean(np.array(hidden) > 0.05) < 0.8
    assert max(hidden) > 0.25


@pytest.mark.parametrize('name', CLASSES)
def test_areas_agree_with_pixels(scenes, name):
    shapes = [shape for scene in scenes for shape in scene.shapes if shape.name == name]
    assert len(shapes) >= 10
    for shape in shapes:
        inside = scene_module.Shape(
            name, np.array([240.0, 240.0]), shape.radius, _moved(shape.corners, 240 - shape.center)
        ).depth(480, 480)
        assert (inside > 0).sum() == pytest.approx(shape.area, abs=3 * shape.radius)


def _moved(corners, by):
    return None if corners is None else corners + by


# The two layouts


def test_coco_polygons_boxes_and_areas(coco):
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getCatIds() == [1, 2, 3]
    assert coco.dataset['info']['description'] and coco.dataset['licenses'][0]['url']
    assert len(coco.anns) == len(coco.dataset['annotations']) >= 15
    slack = []
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert annotation['iscrowd'] == 0
        assert mask.sum() == pytest.approx(annotation['area'], rel=0.04)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation['bbox']
        tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        slack.append(np.abs(np.subtract((x, y, x + width, y + height), tight)))
    assert np.max(slack) <= 1
    assert np.mean(slack) < 0.1  # no systematic offset of half a pixel


def test_each_part_is_a_polygon_and_small_parts_are_omitted():
    mask = np.zeros((100, 120), bool)
    mask[10:40, 20:50] = mask[10:40, 60:110] = mask[80:85, 5:10] = True
    shape = scene_module.Shape('triangle', np.zeros(2), 1.0)
    scene = scene_module.Scene(np.zeros((100, 120, 3), np.uint8), [shape], [mask])
    (annotation,) = module.coco_annotations(scene, image_id=7)
    polygons = [np.reshape(points, (-1, 2)) for points in annotation['segmentation']]
    extents = sorted((*points.min(0), *points.max(0)) for points in polygons)
    assert extents == [(20, 10, 50, 40), (60, 10, 110, 40)]
    assert annotation['bbox'] == [20, 10, 90, 30]
    assert annotation['area'] == 30 * 30 + 30 * 50
    assert (annotation['image_id'], annotation['category_id']) == (7, 3)
    assert (module.label_map(scene) == 115).sum() == mask.sum()


def test_both_layouts_agree(root, coco):
    for image in coco.loadImgs(coco.getImgIds()):
        first = root / 'coco/train2017' / image['file_name']
        second = root / f'ADEChallengeData2016/images/training/ADE_train_{image["id"]:08d}.jpg'
        assert first.read_bytes() == second.read_bytes()
        assert cv2.imread(str(first)).shape == (image['height'], image['width'], 3)
        labels = _labels(root, image['id'])
        for category, value in ((1, 120), (2, 42), (3, 115)):
            shown = np.zeros(labels.shape, bool)
            for number in coco.getAnnIds(image['id'], category):
                shown |= coco.annToMask(coco.anns[number]).astype(bool)
            wanted = labels == value
            assert (shown ^ wanted).sum() <= 0.05 * wanted.sum()


def test_label_values_are_those_of_ade20k(root):
    from mmseg.datasets import ADE20KDataset

    values = set().union(*(np.unique(_labels(root, index)) for index in range(1, 9)))
    names = {ADE20KDataset.METAINFO['classes'][value - 1] for value in values}
    assert names == {'wall', 'ball', 'box', 'tent'}


def test_mmdet_loads_it(root):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = CocoDataset(
            data_root=str(root / 'coco'),
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            metainfo=dict(classes=CLASSES),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='Resize', scale=(320, 256), keep_ratio=True),
                dict(type='RandomFlip', prob=1.0),
                dict(type='PackDetInputs'),
            ],
        )
    assert len(dataset) == 8
    labels = set()
    for sample in dataset:
        instances = sample['data_samples'].gt_instances
        height, width = sample['inputs'].shape[1:]
        assert max(height, width) <= 320 and min(height, width) <= 256
        boxes, masks = instances.bboxes.tensor, instances.masks.to_ndarray()
        assert len(boxes) == len(masks) >= 1
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert np.abs(box.numpy() - extent).max() <= 2
        labels |= set(instances.labels.tolist())
    assert labels == {0, 1, 2}


def test_mmseg_loads_it(root):
    from mmengine.registry import DefaultScope
    from mmseg.datasets import ADE20KDataset
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = ADE20KDataset(
            data_root=str(root / 'ADEChallengeData2016'),
            data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', reduce_zero_label=True),
                dict(type='RandomCrop', crop_size=(192, 192), cat_max_ratio=1.0),
                dict(type='PackSegInputs'),
            ],
        )
    assert len(dataset) == 4
    seen = set()
    for sample in dataset:
        labels = sample['data_samples'].gt_sem_seg.data
        assert labels.shape == (1, 192, 192) and sample['inputs'].shape == (3, 192, 192)
        seen |= set(labels.unique().tolist())
    assert {0} < seen <= {0, 41, 114, 119}


# Reproducibility


def test_seed_determines_all_bytes(root, tmp_path):
    draw_shapes(tmp_path / 'same', num_train=8, num_val=4, progress=False)
    assert _hashes(tmp_path / 'same') == _hashes(root)
    draw_shapes(tmp_path / 'other', num_train=2, num_val=1, seed=1, progress=False)
    other, here = _hashes(tmp_path / 'other'), _hashes(root)
    assert not [name for name in other if other[name] == here[name]]


def test_image_does_not_depend_on_the_number_of_images(root, tmp_path):
    draw_shapes(tmp_path / 'few', num_train=3, num_val=1, progress=False)
    few, many = _hashes(tmp_path / 'few'), _hashes(root)
    pictures = [name for name in few if not name.endswith('.json')]
    assert len(pictures) == 3 * 4
    assert all(few[name] == many[name] for name in pictures)
    annotations = [
        json.loads((folder / 'coco/annotations/instances_train2017.json').read_text())
        for folder in (tmp_path / 'few', root)
    ]
    first_three = [entry for entry in annotations[1]['annotations'] if entry['image_id'] <= 3]
    assert annotations[0]['annotations'] == first_three


def test_training_and_validation_images_differ(root):
    pictures = {name: digest for name, digest in _hashes(root / 'coco').items() if 'jpg' in name}
    assert len(set(pictures.values())) == len(pictures) == 12


# The target folder


def test_a_complete_dataset_is_reused(root, capsys):
    before = _hashes(root), (root / 'shapes.json').stat().st_mtime_ns
    assert not draw_shapes(root, num_train=8, num_val=4)
    assert 'nothing to draw' in capsys.readouterr().out
    assert (_hashes(root), (root / 'shapes.json').stat().st_mtime_ns) == before


def test_other_settings_need_overwrite(tmp_path):
    target = tmp_path / 'set'
    draw_shapes(target, 1, 1, progress=False)
    before = _hashes(target)
    with pytest.raises(FileExistsError, match=r'set was drawn with .*seed=0.*\(--overwrite\)'):
        draw_shapes(target, 1, 1, seed=2, progress=False)
    assert _hashes(target) == before
    assert draw_shapes(target, 1, 1, seed=2, overwrite=True, progress=False)
    assert json.loads((target / 'shapes.json').read_text())['seed'] == 2
    assert _hashes(target).keys() == before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_incomplete_dataset_is_reported_and_redrawn(root, tmp_path):
    target = tmp_path / 'set'
    shutil.copytree(root, target)
    (target / 'coco/val2017/000000000002.jpg').unlink()
    with pytest.raises(FileExistsError, match=r'lacks .*000000000002\.jpg'):
        draw_shapes(target, 8, 4, progress=False)
    draw_shapes(target, 8, 4, overwrite=True, progress=False)
    assert _hashes(target) == _hashes(root)


@pytest.mark.parametrize('stamp', [None, '{"seed": 0, "other": 1}', '[]', 'not json'])
def test_other_folders_are_never_changed(tmp_path, stamp):
    (tmp_path / 'precious.txt').write_text('mine')
    if stamp is not None:
        (tmp_path / 'shapes.json').write_text(stamp)
    before = _hashes(tmp_path)
    with pytest.raises(
        FileExistsError, match=f'{tmp_path.name} exists and is not a shapes dataset'
    ):
        draw_shapes(tmp_path, 1, 1, overwrite=True, progress=False)
    assert _hashes(tmp_path) == before


def test_a_file_is_never_replaced(tmp_path):
    target = tmp_path / 'file'
    target.write_text('mine')
    with pytest.raises(FileExistsError, match='file exists and is not a shapes dataset'):
        draw_shapes(target, 1, 1, overwrite=True, progress=False)
    assert target.read_text() == 'mine'


def test_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / 'a' / 'b'
    target.mkdir(parents=True)
    assert draw_shapes(target, 1, 1, progress=False)
    assert (target / 'coco/val2017/000000000001.jpg').is_file()


@pytest.mark.parametrize('existing', [False, True])
def test_interruption_leaves_the_target_as_it_was(tmp_path, monkeypatch, existing):
    target = tmp_path / 'set'
    if existing:
        draw_shapes(target, 1, 1, progress=False)
    before = _hashes(tmp_path)
    encoded, calls = module._encoded, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encoded(*args)

    monkeypatch.setattr(module, '_encoded', interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_shapes(target, 4, 1, overwrite=True, progress=False)
    assert len(calls) == 3
    assert _hashes(tmp_path) == before
    assert target.exists() == existing and len(list(tmp_path.iterdir())) == existing


def test_failed_replacement_restores_the_old_dataset(tmp_path, monkeypatch):
    target = tmp_path / 'set'
    draw_shapes(target, 1, 1, progress=False)
    before = _hashes(tmp_path)
    rename = Path.rename

    def failing(path, to):
        if path.name == 'new':
            raise OSError('no space left on device')
        return rename(path, to)

    monkeypatch.setattr(Path, 'rename', failing)
    with pytest.raises(OSError, match='no space left'):
        draw_shapes(target, 1, 1, seed=1, overwrite=True, progress=False)
    assert _hashes(tmp_path) == before


def test_a_dataset_that_appears_meanwhile_is_kept(root, tmp_path, monkeypatch):
    target = tmp_path / 'set'
    scene = module.draw_scene

    def slow(seed, part, index):
        if not target.exists():
            shutil.copytree(root, target)
            (target / 'marker').touch()
        return scene(seed, part, index)

    monkeypatch.setattr(module, 'draw_scene', slow)
    assert not draw_shapes(target, 8, 4, progress=False)
    assert (target / 'marker').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize(
    ('argument', 'value'), [('num_train', 0), ('num_val', -1), ('seed', -1), ('num_train', 2.5)]
)
def test_error_names_bad_number(tmp_path, argument, value):
    with pytest.raises(ValueError, match=rf'{argument} must be an integer .* got {value}'):
        draw_shapes(tmp_path / 'set', **{argument: value})
    assert not (tmp_path / 'set').exists()


# The tool


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('draw_shapes')


def test_tool_passes_its_options_on(tool, tmp_path, capsys):
    target = tmp_path / 'set'
    tool.main([str(target), '--num-train', '2', '--num-val', '1', '--seed', '7'])
    assert 'drew 2 training and 1 validation images' in capsys.readouterr().out
    stamp = json.loads((target / 'shapes.json').read_text())
    assert (stamp['num_train'], stamp['num_val'], stamp['seed']) == (2, 1, 7)
    tool.main([str(target), '--num-train', '1', '--num-val', '1', '--overwrite'])
    assert len(list((target / 'coco/train2017').iterdir())) == 1


@pytest.mark.parametrize('options', [[], ['--num-train', '0'], ['--seed', '-3']])
def test_tool_errors_are_one_line(tool, tmp_path, options):
    (tmp_path / 'precious.txt').write_text('mine')
    with pytest.raises(UserError) as error:
        tool.main([str(tmp_path), *options])
    assert '\n' not in str(error.value)
