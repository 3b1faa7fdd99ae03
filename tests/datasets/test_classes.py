"""The classification dataset: its contents, its reader, and the handling of the target folder."""

import shutil

import cv2
import numpy as np
import pytest

from mmgcvit.datasets import draw_shape_classes, draw_shapes
from mmgcvit.datasets.scene import draw_scene
from mmgcvit.errors import UserError

CLASSES = ('circle', 'rectangle', 'triangle')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('classes') / 'drawn'
    assert draw_shape_classes(folder, num_train=7, num_val=3, progress=False)
    return folder


def contents(root):
    files = (path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_mmpretrain_reads_the_folders_as_classes(root):
    from mmpretrain.datasets import CustomDataset

    for split, numbers in (('train', [2, 3, 2]), ('val', [1, 1, 1])):
        dataset = CustomDataset(data_root=str(root), data_prefix=split)
        assert dataset.metainfo['classes'] == CLASSES
        labels = [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]
        assert np.bincount(labels).tolist() == numbers


@pytest.mark.parametrize('name', CLASSES)
def test_each_image_shows_one_shape_of_its_class(root, name):
    paths = sorted((root / 'train' / name).glob('*.jpg'))
    assert paths
    for path in paths:
        scene = draw_scene(0, 2, int(path.stem), only=name)
        assert [shape.name for shape in scene.shapes] == [name]
        difference = np.abs(cv2.imread(str(path)) - scene.image.astype(float))
        assert difference.mean() < 3  # JPEG


def test_equal_settings_give_equal_bytes_and_more_images_change_none(root, tmp_path):
    draw_shape_classes(tmp_path / 'again', 7, 3, progress=False)
    assert contents(tmp_path / 'again') == contents(root)
    draw_shape_classes(tmp_path / 'more', 8, 3, progress=False)
    more = contents(tmp_path / 'more')
    common = {name for name in contents(root) if name.endswith('.jpg')}
    assert all(more[name] == contents(root)[name] for name in common)
    draw_shape_classes(tmp_path / 'other', 7, 3, seed=1, progress=False)
    other = contents(tmp_path / 'other')
    assert not any(other[name] == contents(root)[name] for name in common)


def test_a_complete_dataset_is_not_drawn_again_and_an_incomplete_one_only_on_request(
    root, tmp_path
):
    target = tmp_path / 'set'
    shutil.copytree(root, target)
    assert not draw_shape_classes(target, 7, 3, progress=False)
    with pytest.raises(FileExistsError, match=r'was drawn with .*num_train=7.*, not .*num_train=9'):
        draw_shape_classes(target, 9, 3, progress=False)
    (target / 'val/circle/00000003.jpg').unlink()
    with pytest.raises(FileExistsError, match=r'lacks .*00000003\.jpg'):
        draw_shape_classes(target, 7, 3, progress=False)
    assert draw_shape_classes(target, 7, 3, overwrite=True, progress=False)
    assert contents(target) == contents(root)


def test_neither_dataset_replaces_the_other(root, tmp_path):
    draw_shapes(tmp_path / 'shapes', 1, 1, progress=False)
    for draw, existing in ((draw_shapes, root), (draw_shape_classes, tmp_path / 'shapes')):
        before = contents(existing)
        with pytest.raises(FileExistsError, match='choose a different folder, or move this one'):
            draw(existing, 1, 1, overwrite=True, progress=False)
        assert contents(existing) == before


def test_the_tool_draws_it(tmp_path, load_tool, capsys):
    main = load_tool('draw_shapes').main
    arguments = [str(tmp_path / 'set'), '--classes', '--num-train', '3', '--num-val', '1']
    main(arguments)
    main(arguments)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f'drew 3 training and 1 validation images in {tmp_path / "set"}'
    assert second.endswith('already contains these images: nothing to draw')
    assert sorted(path.name for path in (tmp_path / 'set/val').iterdir()) == list(CLASSES)
    with pytest.raises(UserError, match='num_val must be an integer of at least 1, got 0'):
        main([*arguments[:-1], '0'])
