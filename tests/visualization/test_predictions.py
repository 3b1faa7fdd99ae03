"""Pairs of ground truth and predictions have the right position and size for any pipeline."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from mmgcvit.datasets import draw_shapes
from mmgcvit.visualization import draw_predictions
from mmgcvit.visualization import predictions as module

CLASSES = ('circle', 'rectangle', 'triangle')
LOAD = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
RESIZE = dict(type='Resize', scale=(160, 128), keep_ratio=True)
PACK = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('predictions') / 'drawn'
    draw_shapes(folder, num_train=1, num_val=5, progress=False)
    # gray images, so that no shape can have the color of the annotations
    for path in (folder / 'coco' / 'val2017').iterdir():
        cv2.imwrite(str(path), np.full_like(cv2.imread(str(path)), 128))
    return folder


def _dataset(root, *transforms, **settings):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return CocoDataset(
            data_root=str(root / 'coco'),
            ann_file='annotations/instances_val2017.json',
            data_prefix=dict(img='val2017/'),
            metainfo=dict(classes=CLASSES),
            test_mode=True,
            pipeline=[dict(type='LoadImageFromFile'), *transforms, PACK],
            **settings,
        )


@pytest.fixture(scope='module')
def dataset(root):
    return _dataset(root, RESIZE, LOAD)


@pytest.fixture(autouse=True)
def _small_panels(monkeypatch):
    monkeypatch.setattr(module, 'PANEL', 360)  # takes a third of the time


class Detector(nn.Module):
    """A detector that predicts the same instances for every image, in original coordinates."""

    def __init__(self, boxes=(), scores=(), masks=None):
        super().__init__()
        self.seen = []
        self.instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.zeros(len(boxes), dtype=torch.long),
        )
        if masks is not None:
            self.instances.masks = masks

    def test_step(self, data):
        assert not self.training and not torch.is_grad_enabled()
        (sample,) = data['data_samples']
        self.seen.append(sample.img_id)
        sample.pred_instances = self.instances
        return [sample]


def _panels(dataset, index, out):
    """Return the left panel, the right panel and the resized original of a single pair."""
    image = cv2.imread(dataset.get_data_info(index)['img_path'])
    scale = module.PANEL / max(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    clean = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = cv2.imread(str(out))
    margin, top = module.MARGIN, module.CAPTION
    assert picture.shape == (height + top + margin, 2 * width + 3 * margin, 3)
    left = picture[top : top + height, margin : margin + width]
    right = picture[top : top + height, 2 * margin + width : 2 * (margin + width)]
    return left, right, clean


def _changed(panel, clean):
    return np.abs(panel.astype(int) - clean).max(2) > 12


def test_ground_truth_is_only_drawn_left(dataset, tmp_path):
    out = draw_predictions(Detector(), dataset, tmp_path / 'p.png', num_images=1)
    left, right, clean = _panels(dataset, 0, out)
    assert not _changed(right, clean).any()
    changed = _changed(left, clean)
    scale = module.PANEL / max(cv2.imread(dataset.get_data_info(0)['img_path']).shape[:2])
    inside = np.zeros(changed.shape, bool)
    instances = dataset.get_data_info(0)['instances']
    for instance in instances:
        x0, y0, x1, y1 = (round(value * scale) for value in instance['bbox'])
        inside[max(y0 - 3, 0) : y1 + 4, max(x0 - 3, 0) : x1 + 4] = True
        box = changed[y0:y1, x0:x1]
        # a line along each of the four edges, which rounding and the image border may shift
        rows, columns = slice(y0, y1), slice(x0, x1)
        around = [slice(max(edge - 3, 0), edge + 3) for edge in (y0, y1, x0, x1)]
        for area, axis in (
            ((around[0], columns), 0),
            ((around[1], columns), 0),
            ((rows, around[2]), 1),
            ((rows, around[3]), 1),
        ):
            assert changed[area].max(axis).mean() > 0.95
        assert box.mean() > 0.3  # the mask
    texts = 40  # labels may extend beyond small boxes
    assert (
        changed & ~cv2.dilate(inside.astype(np.uint8), np.ones((3, texts * 3))).astype(bool)
    ).sum() == 0


def test_predictions_above_the_threshold_are_drawn_right(dataset, tmp_path):
    height, width = cv2.imread(dataset.get_data_info(0)['img_path']).shape[:2]
    low, high = (
        [5, 5, width / 2 - 20, height / 2 - 20],
        [width / 2, height / 2, width - 5, height - 5],
    )
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, height // 2 : height - 5, width // 2 : width - 5] = True
    model = Detector([low, high], [0.3, 0.9], mask)
    left, right, clean = _panels(
        dataset, 0, draw_predictions(model, dataset, tmp_path / 'a.png', 1, score_thr=0.5)
    )
    changed = _changed(right, clean)
    middle = [side // 2 for side in changed.shape]
    assert changed[middle[0] + 4 :, middle[1] + 4 :].mean() > 0.8
    assert not changed[: middle[0] - 6, : middle[1] - 6].any()
    assert _changed(left, clean).any()

    _, right, clean = _panels(
        dataset, 0, draw_predictions(model, dataset, tmp_path / 'b.png', 1, score_thr=0.1)
    )
    assert _changed(right, clean)[: middle[0] - 6, : middle[1] - 6].any()


def test_order_of_loading_and_resizing_does_not_matter(root, tmp_path):
    pictures = []
    for number, order in enumerate(((RESIZE, LOAD), (LOAD, RESIZE), (RESIZE,))):
        np.random.seed(0)  # mmdet jitters colors randomly
        out = tmp_path / f'{number}.png'
        draw_predictions(Detector([[9, 9, 99, 99]], [0.9]), _dataset(root, *order), out, 1)
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]


def test_grid_of_evenly_spaced_images(dataset, tmp_path):
    model = Detector()
    out = draw_predictions(model, dataset, tmp_path / 'p.png', num_images=3)
    assert model.seen == [1, 3, 5]
    sizes = [cv2.imread(dataset.get_data_info(i)['img_path']).shape[:2] for i in (0, 2, 4)]
    panels = [[round(side * module.PANEL / max(size)) for side in size] for size in sizes]
    rows = [max(panels[0][0], panels[1][0]), panels[2][0]]
    width = 4 * (max(panel[1] for panel in panels) + module.MARGIN) + module.MARGIN
    height = sum(rows) + 2 * (module.CAPTION + module.MARGIN)
    assert cv2.imread(str(out)).shape == (height, width, 3)
    assert [path.name for path in tmp_path.iterdir()] == ['p.png']


def test_captions_above_both_panels(dataset, tmp_path):
    picture = cv2.imread(str(draw_predictions(Detector(), dataset, tmp_path / 'p.png', 1)))
    strip, half = picture[: module.CAPTION - 2] < 100, picture.shape[1] // 2
    assert strip[:, :half].sum() > strip[:, half:].sum() > 100


@pytest.mark.parametrize(
    ('length', 'count', 'wanted'),
    [(60, 4, [0, 20, 39, 59]), (3, 8, [0, 1, 2]), (1, 1, [0]), (5, 1, [0])],
)
def test_evenly(length, count, wanted):
    assert module.evenly(length, count) == wanted


def test_boxes_without_masks_and_images_without_instances(root, tmp_path):
    boxes_only = _dataset(root, RESIZE, dict(type='LoadAnnotations', with_bbox=True))
    boxes_only.full_init()
    info = boxes_only.get_data_info

    def stripped(index):
        found = info(index)
        for instance in found['instances']:
            del instance['mask']
        return dict(found, instances=found['instances'] if index == 0 else [])

    boxes_only.get_data_info = stripped
    out = draw_predictions(Detector(), boxes_only, tmp_path / 'p.png', num_images=1)
    left, _, clean = _panels(boxes_only, 0, out)
    assert 0 < _changed(left, clean).mean() < 0.5
    boxes_only.get_data_info = lambda index: stripped(index + 1)
    out = draw_predictions(Detector(), boxes_only, tmp_path / 'p.png', num_images=1)
    left, _, clean = _panels(boxes_only, 0, out)
    assert not _changed(left, clean).any()


@pytest.mark.parametrize('training', [True, False])
def test_the_training_mode_is_restored(dataset, tmp_path, training):
    model = Detector().train(training)
    draw_predictions(model, dataset, tmp_path / 'p.png', 1)
    assert model.training is training
    del model.instances
    with pytest.raises(AttributeError):
        draw_predictions(model, dataset, tmp_path / 'q.png', 1)
    assert model.training is training
    assert not (tmp_path / 'q.png').exists()


def test_a_real_mask_rcnn(dataset, tmp_path):
    import mmdet
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    base = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py'
    cfg = Config.fromfile(base)
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(depth=18, base_channels=8, stem_channels=8, init_cfg=None),
                neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
                rpn_head=dict(in_channels=8, feat_channels=8),
                roi_head=dict(
                    bbox_roi_extractor=dict(out_channels=8),
                    bbox_head=dict(in_channels=8, fc_out_channels=8, num_classes=3),
                    mask_roi_extractor=dict(out_channels=8),
                    mask_head=dict(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3),
                ),
                test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(max_per_img=5)),
            )
        )
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    out = draw_predictions(model, dataset, tmp_path / 'p.png', num_images=1, score_thr=0.0)
    _, right, clean = _panels(dataset, 0, out)
    assert _changed(right, clean).any()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_images=0), 'num_images must be at least 1, got 0'),
        (dict(score_thr=1.0), r'score_thr must be in \[0, 1\), got 1.0'),
        (dict(out_file='p.jpg'), r"out_file must end in \.png, got 'p\.jpg'"),
        (dict(dataset=[]), 'the dataset is empty'),
    ],
)
def test_bad_arguments(dataset, tmp_path, changes, message):
    arguments = dict(model=Detector(), dataset=dataset, out_file=tmp_path / 'p.png')
    with pytest.raises(ValueError, match=message):
        draw_predictions(**{**arguments, **changes})
    assert not list(tmp_path.iterdir())
