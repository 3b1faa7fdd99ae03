"""The modules that are recorded, compared with what they replace, without recording them."""

import itertools

import mmcv
import numpy as np
import pytest
import torch
from exported import ATSS, CROPPED, load
from mmcv.ops import batched_nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmengine.dataset import pseudo_collate
from torch import nn

from mmgcvit.deployment import build_graph
from mmgcvit.deployment.boxes import decode, suppress
from mmgcvit.deployment.regions import paste
from mmgcvit.deployment.resizing import Resize
from mmgcvit.deployment.segmentors import AnySizePool
from mmgcvit.errors import UserError

NMS = {'model.test_cfg.rcnn.nms': dict(type='nms', iou_threshold=0.5)}
PAA = {**ATSS, 'model.type': 'PAA', 'model.bbox_head.type': 'PAAHead'}
BOXES_ONLY = {'model.roi_head.mask_head': None, 'model.roi_head.mask_roi_extractor': None}


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('mask_rcnn', {}),
        pytest.param('mask_rcnn', {**NMS, **BOXES_ONLY}, marks=pytest.mark.slow),
        pytest.param('cascade', {'model.test_cfg.rcnn.score_thr': 0.3}, marks=pytest.mark.slow),
        ('retinanet', {}),
        pytest.param('retinanet', ATSS, marks=pytest.mark.slow),
    ],
    ids=['mask_rcnn_soft_nms', 'faster_rcnn', 'cascade', 'retinanet', 'atss'],
)
def test_detectors_detect_what_mmdet_detects(models, tmp_path, name, options):
    trained = load(tmp_path, name, **options)
    graph = build_graph(trained, resize=False)
    batch = trained.load_batch(models.images[0])
    # the graph gets the image as the pipeline resized it
    (image,), (sample,) = batch['inputs'], batch['data_samples']
    sample.set_metainfo(dict(ori_shape=sample.img_shape, scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        boxes, scores, labels, *masks = graph(image.permute(1, 2, 0).flip(2))
        (expected,) = trained.model.test_step(batch)
    expected = expected.pred_instances
    assert len(expected) > 20 and len(expected.labels.unique()) > 1
    torch.testing.assert_close(boxes, expected.bboxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
    assert torch.equal(labels, expected.labels)
    assert len(masks) == ('masks' in expected)
    if masks:
        pasted = paste(masks[0], boxes, torch.tensor(sample.img_shape)) >= 0.5
        assert (pasted == expected.masks).float().mean() > 0.9999


def test_segmentors_predict_the_classes_that_mmseg_predicts(models, tmp_path):
    trained = load(tmp_path, 'upernet')
    trained.model.data_preprocessor.test_cfg = dict(size_divisor=32)
    graph = build_graph(trained)
    batch = trained.load_batch(models.images[0])
    image = torch.from_numpy(np.ascontiguousarray(trained.load_image(models.images[0])))
    with torch.no_grad():
        found = graph(image)
        (expected,) = trained.model.test_step(batch)
    expected = expected.pred_sem_seg.data[0]
    assert found.dtype == torch.uint8 and len(expected.unique()) > 5
    assert (found == expected).float().mean() > 0.99  # of resizing, which rounds differently


def test_classifiers_predict_the_scores_that_mmpretrain_predicts(models, tmp_path):
    trained = load(tmp_path, 'classifier', **{'test_dataloader.dataset.pipeline': CROPPED})
    graph = build_graph(trained)
    for path in models.images:
        with torch.no_grad():
            found = graph(torch.from_numpy(trained.load_image(path).copy()))
            (expected,) = trained.model.test_step(trained.load_batch(path))
        torch.testing.assert_close(found, expected.pred_score, rtol=0, atol=1e-3)
        assert 0.01 < found[0] < 0.99


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_images_are_prepared_as_by_the_pipeline(models, tmp_path, bgr_to_rgb):
    options = {'model.data_preprocessor.bgr_to_rgb': bgr_to_rgb}
    trained = load(tmp_path, 'retinanet', **options)
    graph = build_graph(trained)
    std = trained.model.data_preprocessor.std
    for image in models.images:
        batch = pseudo_collate([trained.load_sample(image)])
        expected = trained.model.data_preprocessor(batch)
        size = expected['data_samples'][0].img_shape
        x, sizes = graph.image(torch.from_numpy(trained.load_image(image).copy()))
        assert x.shape == expected['inputs'].shape and sizes.resized.tolist() == list(size)
        levels = ((x - expected['inputs']) * std).abs()
        assert levels.max() < 1.001 and levels.mean() < 0.2


def test_sizes_are_rounded_as_by_mmcv():
    for scale, keep_ratio in itertools.product([(1333, 800), (160, 128)], [True, False]):
        resize = Resize(scale, keep_ratio)
        for height, width in itertools.product(range(1, 4000, 197), range(1, 4000, 189)):
            expected = mmcv.rescale_size((width, height), scale) if keep_ratio else scale
            expected = [max(side, 1) for side in expected[::-1]]
            assert resize.size(torch.tensor([height, width])).tolist() == expected


@pytest.mark.parametrize(
    'settings',
    [
        dict(target_stds=(0.1, 0.1, 0.2, 0.2), target_means=(0.0, 0.1, 0.2, 0.3)),
        dict(clip_border=False),
        dict(add_ctr_clamp=True, ctr_clamp=3),
    ],
)
def test_boxes_are_decoded_as_by_mmdet(settings):
    coder = DeltaXYWHBBoxCoder(**settings)
    priors = torch.rand(30, 4) * 20 + torch.tensor([0, 0, 30, 30])
    deltas = torch.randn(30, 4) * 5
    expected = coder.decode(priors, deltas, max_shape=(40, 50))
    found = decode(coder, priors, deltas, torch.tensor([40, 50]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    'settings',
    [
        dict(type='nms'),
        dict(type='nms', class_agnostic=True),
        dict(type='soft_nms'),
        dict(type='soft_nms', method='gaussian', sigma=0.3, min_score=0.05),
        dict(type='soft_nms', method='naive', class_agnostic=True),
    ],
)
@pytest.mark.parametrize('number', [0, 1, 60])
def test_nms_keeps_the_boxes_that_mmcv_keeps(settings, number):
    corners = torch.rand(number, 2) * 60
    boxes = torch.cat((corners, corners + 5 + torch.rand(number, 2) * 40), 1)
    scores, groups = torch.rand(number), torch.randint(3, (number,))
    settings = dict(settings, iou_threshold=0.4)
    kept, values = suppress(boxes, scores, groups, settings, 20)
    if not number:
        assert not len(kept) and not len(values)
        return
    expected, indices = batched_nms(boxes, scores, groups, settings)
    assert kept.tolist() == indices[:20].tolist()
    torch.testing.assert_close(values, expected[:20, 4])


def test_masks_are_pasted_as_by_mmdet():
    masks = torch.rand(3, 28, 28)
    boxes = torch.tensor([[3.2, 4.1, 40.7, 30.3], [-5, -3, 20, 90], [60.5, 10, 61.1, 12]])
    expected, _ = _do_paste_mask(masks[:, None], boxes, 50, 70, skip_empty=False)
    found = paste(masks, boxes, torch.tensor([50, 70]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 3, (6, 4)])
def test_pooling_of_maps_of_any_size(size):
    for height, width in [(7, 13), (6, 4), (2, 1), (32, 40)]:
        x = torch.randn(1, 3, height, width)
        expected = nn.AdaptiveAvgPool2d(size)(x)
        torch.testing.assert_close(AnySizePool(size)(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('classifier', {'model.head.type': 'MultiLabelLinearClsHead'}, 'MultiLabelLinearClsHead'),
        ('mask_rcnn', {'model.test_cfg.rcnn.nms.type': 'nms_match'}, "nms.type is 'nms_match'"),
        ('mask_rcnn', {'model.test_cfg.rpn.nms.max_num': 9}, 'test_cfg.rpn.nms.max_num of nms'),
        ('mask_rcnn', {'model.test_cfg.rcnn.max_per_img': -1}, 'rcnn.max_per_img is -1'),
        ('retinanet', {'model.test_cfg.nms': None}, 'test_cfg.nms is not set'),
        ('mask_rcnn', {'model.roi_head.type': 'PISARoIHead'}, 'roi_head is PISARoIHead'),
        ('retinanet', PAA, 'bbox_head is PAAHead'),
        ('retinanet', {'model.bbox_head.bbox_coder.type': 'TBLRBBoxCoder'}, 'TBLRBBoxCoder'),
        (
            'upernet',
            {'model.test_cfg': dict(mode='slide', stride=(9, 9), crop_size=(9, 9))},
            'slide',
        ),
    ],
)
def test_what_cannot_be_exported_is_named(models, tmp_path, name, options, message):
    trained = load(tmp_path, name, **options)
    with pytest.raises(UserError, match=message) as error:
        build_graph(trained)
    assert 'cannot be exported' in str(error.value)


@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (dict(type='Pad', size_divisor=32), 'Pad cannot be exported'),
        (dict(type='Resize', scale=(99, 99), backend='pillow'), "backend='pillow'"),
        (
            dict(type='mmpretrain.ResizeEdge', scale=99),
            "ResizeEdge with edge='short', backend='cv2'",
        ),
        (dict(type='mmcv.CenterCrop', crop_size=9), 'CenterCrop of images for detectors'),
        (dict(type='Resize', scale_factor=0.5), 'Resize with scale_factor'),
    ],
)
def test_transforms_that_cannot_be_exported(models, tmp_path, transform, message):
    pipeline = [dict(type='LoadImageFromFile'), transform, dict(type='PackDetInputs')]
    trained = load(tmp_path, 'retinanet', **{'test_dataloader.dataset.pipeline': pipeline})
    with pytest.raises(UserError, match=message):
        build_graph(trained)
