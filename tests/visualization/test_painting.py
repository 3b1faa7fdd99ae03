"""The images that tools/test.py --show-dir saves; tests/tools runs the tool."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from mmgcvit.errors import UserError
from mmgcvit.visualization import PaintPredictions


@pytest.mark.parametrize('prefix', ['img', 'img_path'])
def test_equal_file_names_in_subfolders(tmp_path, prefix):
    painted = []
    root = tmp_path / 'images'
    samples = []
    for name in ('a/1.png', 'b/1.png'):
        (root / name).parent.mkdir(parents=True)
        cv2.imwrite(str(root / name), np.zeros((4, 4, 3), np.uint8))
        samples.append(BaseDataElement(metainfo=dict(img_path=str(root / name))))
    visualizer = SimpleNamespace(
        add_datasample=lambda name, *_, **settings: painted.append(settings)
    )
    dataset = SimpleNamespace(data_prefix={prefix: str(root)})
    runner = SimpleNamespace(
        visualizer=visualizer, test_dataloader=SimpleNamespace(dataset=dataset)
    )
    PaintPredictions(tmp_path / 'out').after_test_iter(runner, 0, outputs=samples)
    files = [settings['out_file'] for settings in painted]
    assert files == [str(tmp_path / 'out' / name) for name in ('a/1.png', 'b/1.png')]


def test_every_process_saves_its_images(monkeypatch, tmp_path):
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    picture = str(tmp_path / '1.png')
    cv2.imwrite(picture, np.zeros((64, 64, 3), np.uint8))
    sample = DetDataSample(metainfo=dict(img_path=picture))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 48.0, 48.0]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
    )
    metainfo = dict(classes=('circle',), palette=[(255, 0, 0)])
    dataset = SimpleNamespace(metainfo=metainfo)
    runner = SimpleNamespace(
        visualizer=DetLocalVisualizer(), test_dataloader=SimpleNamespace(dataset=dataset)
    )
    hook = PaintPredictions(tmp_path / 'out')
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, outputs=[sample])
    blue, green, red = cv2.imread(str(tmp_path / 'out' / '1.png')).reshape(-1, 3).max(axis=0)
    assert red > 200 > max(blue, green), 'the box has the color of its class'
    assert not is_main_process(), 'and other parts of mmengine go by the rank as ever'


@pytest.mark.parametrize('segments', [0, 1])
def test_a_panoptic_map_may_have_no_segment(tmp_path, segments):
    picture = str(tmp_path / '1.png')
    cv2.imwrite(picture, np.zeros((64, 64, 3), np.uint8))
    sample = DetDataSample(metainfo=dict(img_path=picture))
    ids = torch.full((1, 64, 64), 2)  # the number of classes
    ids[0, :32] -= segments
    sample.pred_panoptic_seg = PixelData(sem_seg=ids)
    meta = dict(classes=('thing', 'stuff'), palette=[(255, 0, 0), (0, 255, 0)])
    dataset = SimpleNamespace(metainfo=meta, data_prefix=dict(img=str(tmp_path)))
    hook = painted(tmp_path / 'out', sample, DetLocalVisualizer(), dataset)
    assert hook.failures == 0
    # to the right of the ground truth; away from the edge and the name of the class
    corner = cv2.imread(str(tmp_path / 'out' / '1.png'))[8:12, 64 + 8 : 64 + 16]
    assert corner.reshape(-1, 3).mean(0) == pytest.approx([0, 204 * segments, 0], abs=2)


def painted(folder, sample, visualizer, dataset, cfg=None):
    """Draw one sample in folder, and return the hook."""
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(visualizer=visualizer, test_dataloader=loader, cfg=cfg)
    hook = PaintPredictions(folder)
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, outputs=[sample])
    hook.after_test(runner)
    return hook


def detected(path, *boxes, labels=None):
    sample = DetDataSample(metainfo=dict(img_path=str(path)))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.long),
        scores=torch.full((len(boxes),), 0.9),
    )
    return sample


@pytest.fixture
def gray(tmp_path):
    cv2.imwrite(str(tmp_path / 'gray.png'), np.full((64, 64, 3), 128, np.uint8))
    return tmp_path / 'gray.png'


PALETTES = [[], [(255, 0, 0)], ((255, 0, 0),), None, 'random']


@pytest.mark.parametrize('palette', PALETTES)
@pytest.mark.parametrize('kind', ['boxes', 'label map'])
def test_classes_without_a_color_get_one(gray, tmp_path, palette, kind):
    dataset = SimpleNamespace(metainfo=dict(classes=['circle', 'star'], palette=palette))
    if kind == 'boxes':
        sample, visualizer = detected(gray, [8, 8, 48, 48], labels=[1]), DetLocalVisualizer()
    else:
        sample, visualizer = SegDataSample(metainfo=dict(img_path=str(gray))), SegLocalVisualizer()
        sample.pred_sem_seg = PixelData(data=torch.ones(1, 64, 64, dtype=torch.long))
    assert painted(tmp_path / 'out', sample, visualizer, dataset).failures == 0
    picture = cv2.imread(str(tmp_path / 'out/gray.png')).astype(int)
    assert (picture.max(2) - picture.min(2)).max() > 30


@pytest.mark.parametrize(
    'problem', ['no boxes', 'unknown class', 'no file', 'no path', 'a label map of another size']
)
def test_an_image_that_cannot_be_drawn_is_skipped(gray, tmp_path, log, problem):
    dataset = SimpleNamespace(metainfo=dict(classes=('circle',), palette=[(255, 0, 0)]))
    sample, visualizer = detected(gray), DetLocalVisualizer()
    if problem == 'unknown class':
        sample = detected(gray, [8, 8, 48, 48], labels=[4])
    elif problem == 'no file':
        gray.unlink()
    elif problem == 'no path':
        sample = DetDataSample()
    elif problem == 'a label map of another size':
        sample, visualizer = SegDataSample(metainfo=dict(img_path=str(gray))), SegLocalVisualizer()
        sample.pred_sem_seg = PixelData(data=torch.zeros(1, 32, 32, dtype=torch.long))
    failed = problem != 'no boxes'
    assert painted(tmp_path / 'out', sample, visualizer, dataset).failures == failed
    lines = [line for line in log if 'not drawn' in line]
    assert len(lines) == 2 * failed
    if failed:
        assert str(gray) in lines[0] or 'img_path in its meta_keys' in lines[0]
        assert '1 images were not drawn' in lines[1]


def test_few_images_that_cannot_be_drawn_are_named(gray, tmp_path, log):
    hook = PaintPredictions(tmp_path / 'out')
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=SimpleNamespace()))
    hook.after_test_iter(runner, 0, outputs=[detected(gray)] * 30)  # no visualizer
    hook.after_test(runner)
    lines = [line for line in log if 'not drawn' in line]
    assert len(lines) == 6 and '30 images' in lines[-1]


@pytest.mark.parametrize(('name', 'expected'), [('a.npy', 'a.npy.png'), ('a', 'a.png')])
def test_names_of_files_that_are_no_images(tmp_path, name, expected):
    (tmp_path / name).write_bytes(b'')
    loader = SimpleNamespace(transforms=[lambda info: dict(info, img=np.zeros((64, 64, 3)))])
    dataset = SimpleNamespace(metainfo={}, pipeline=loader)
    painted(tmp_path / 'out', detected(tmp_path / name), DetLocalVisualizer(), dataset)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [expected]


def test_classifiers(gray, tmp_path):
    from mmpretrain.structures import DataSample
    from mmpretrain.visualization import UniversalVisualizer

    sample = DataSample(metainfo=dict(img_path=str(gray)))
    sample.set_gt_label(1).set_pred_label(0).set_pred_score(torch.tensor([0.9, 0.1]))
    dataset = SimpleNamespace(metainfo=dict(classes=('circle', 'star')))
    hook = painted(tmp_path / 'out', sample, UniversalVisualizer(), dataset)
    assert hook.failures == 0
    assert (cv2.imread(str(tmp_path / 'out/gray.png')) != 128).any()


@pytest.mark.parametrize('head', ['bbox_head', 'decode_head', 'head'])
def test_the_visualizer_of_the_task_replaces_one_that_draws_nothing(gray, tmp_path, head):
    from mmpretrain.structures import DataSample

    if head == 'bbox_head':
        sample = detected(gray, [8, 8, 48, 48])
    elif head == 'decode_head':
        sample = SegDataSample(metainfo=dict(img_path=str(gray)))
        sample.pred_sem_seg = PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long))
    else:
        sample = DataSample(metainfo=dict(img_path=str(gray))).set_pred_label(0)
    dataset = SimpleNamespace(metainfo=dict(classes=('circle',)))
    cfg = Config(dict(model={head: {}}))
    hook = painted(tmp_path / 'out', sample, Visualizer(), dataset, cfg)
    assert hook.failures == 0
    assert (cv2.imread(str(tmp_path / 'out/gray.png')) != 128).any()


def test_a_visualizer_that_draws_nothing_is_an_error_for_other_models(gray, tmp_path):
    dataset = SimpleNamespace(metainfo=dict(classes=('circle',)))
    with pytest.raises(UserError, match=r'set visualizer\.type to mmdet\.DetLocalVisualizer'):
        painted(tmp_path / 'out', detected(gray), Visualizer(), dataset, Config())


def test_strict_makes_an_image_that_cannot_be_drawn_an_error(gray, tmp_path):
    gray.unlink()
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=SimpleNamespace()))
    with pytest.raises(FileNotFoundError):
        PaintPredictions(tmp_path, strict=True).after_test_iter(runner, 0, outputs=[detected(gray)])


@pytest.mark.parametrize('order', ['LR', 'RL', 'L'])
def test_ground_truth_is_in_place_for_any_order_of_loading_and_resizing(gray, tmp_path, order):
    from mmcv.transforms import LoadAnnotations, LoadImageFromFile, Resize
    from mmdet.structures.mask import BitmapMasks

    steps = dict(L=LoadAnnotations(), R=Resize(scale=(32, 16)))
    transforms = [LoadImageFromFile(), *(steps[step] for step in order)]
    dataset = SimpleNamespace(
        metainfo=dict(classes=('circle',), palette=[(255, 0, 0)]),
        pipeline=SimpleNamespace(transforms=transforms),
    )
    sample = detected(gray)
    sample.set_metainfo(dict(scale_factor=(0.5, 0.25), ori_shape=(64, 64)))
    height, width = (16, 32) if order == 'LR' else (64, 64)
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, height // 2 :, : width // 2] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[0, height / 2, width / 2, height]]),
        labels=torch.tensor([0]),
        masks=BitmapMasks(mask, height, width),
    )
    assert painted(tmp_path / 'out', sample, DetLocalVisualizer(), dataset).failures == 0
    truth = cv2.imread(str(tmp_path / 'out/gray.png'))[:, :64].astype(int)
    changed = np.abs(truth - 128).max(2) > 40
    assert changed[40:60, 4:28].mean() > 0.9  # gray edges of letters are not changed
    assert not changed[:28].any() and not changed[:, 40:].any()
    assert sample.gt_instances.masks.masks.shape == (1, height, width)  # other hooks see it
