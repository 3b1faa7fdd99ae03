"""Grad-CAM: its formula, its place in the image, and its targets in all three tasks."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from nano import NANO
from shape_classifier import CLASSES, SIZE, draw

from mmgcvit.errors import UserError
from mmgcvit.task import CLASSIFICATION, DETECTION, SEGMENTATION
from mmgcvit.visualization import cam
from mmgcvit.visualization.attention import find_backbone, record
from mmgcvit.visualization.cam import choose_target, find_targets, grad_cam
from mmgcvit.visualization.placement import Placement


def batch_of(image, sample_type):
    size = image.shape[:2]
    meta = dict(ori_shape=size, img_shape=size, scale_factor=(1.0, 1.0))
    inputs = torch.from_numpy(image).permute(2, 0, 1)
    return dict(inputs=[inputs], data_samples=[sample_type(metainfo=meta)])


def predict(model, batch):
    """Return the prediction and the outputs of the backbone."""
    with torch.no_grad(), record(find_backbone(model)) as recording:
        (prediction,) = model.test_step(batch)
    return prediction, recording.outputs


def test_mass_is_on_the_only_shape(shapes):
    from mmpretrain.structures import DataSample

    rng = np.random.default_rng(1)
    for _ in range(12):
        image, label, mask = draw(rng)
        batch = batch_of(image, DataSample)
        prediction, outputs = predict(shapes.model, batch)
        targets = find_targets(CLASSIFICATION, CLASSES, prediction)
        target = choose_target(CLASSIFICATION, CLASSES, targets, CLASSES[label])
        cams = grad_cam(shapes.model, CLASSIFICATION, shapes.model.backbone, outputs, batch, target)
        on_image = Placement((SIZE, SIZE), (SIZE, SIZE)).to_image(
            cams[1].numpy(), (8, 8), smooth=True
        )
        # within half a cell
        near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0
        assert near.mean() < 0.3
        assert on_image[near].sum() > 0.85 * on_image.sum() > 0


def test_formula_for_a_weighted_mean_and_a_linear_layer(shapes, monkeypatch):
    """Then Grad-CAM is the evidence of the class at each position, if it is positive."""
    from mmpretrain.structures import DataSample

    ramp = torch.linspace(0, 2, 8)
    pool = shapes.model.neck.forward
    monkeypatch.setattr(shapes.model.neck, 'forward', lambda x: pool((x[0] * ramp,)))
    batch = batch_of(draw(np.random.default_rng(2))[0], DataSample)
    prediction, outputs = predict(shapes.model, batch)
    for target in find_targets(CLASSIFICATION, CLASSES, prediction):
        cams = grad_cam(shapes.model, CLASSIFICATION, shapes.model.backbone, outputs, batch, target)
        weight = shapes.model.head.fc.weight[target.index]
        evidence = torch.einsum('chw,c->hw', outputs[0][0], weight)
        wanted = ramp.mean() * evidence.detach().clamp(min=0) / evidence.numel()
        torch.testing.assert_close(cams[1], wanted, rtol=1e-4, atol=1e-7)


def gcvit(**settings):
    return dict(type='mmgcvit.GCViT', arch=NANO, window_size=4, **settings)


@pytest.fixture(scope='module')
def segmentor():
    import mmseg.models  # noqa: F401, registers them

    torch.manual_seed(0)
    head = dict(
        type='FCNHead', in_channels=16, in_index=0, channels=16, num_convs=0, concat_input=False,
        num_classes=3, norm_cfg=None, align_corners=False, dropout_ratio=0.0,
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', test_cfg=dict(size_divisor=8)),
            backbone=gcvit(out_indices=(1, 2)),
            decode_head=head,
            test_cfg=ConfigDict(mode='whole'),
        )
        return MODELS.build(model).eval()


def test_segment_is_explained_by_its_pixels(segmentor):
    from mmseg.structures import SegDataSample

    image = np.random.default_rng(0).integers(0, 255, (61, 75, 3)).astype(np.uint8)
    batch = batch_of(image, SegDataSample)
    prediction, outputs = predict(segmentor, batch)
    labels = prediction.pred_sem_seg.data[0].numpy()
    targets = find_targets(SEGMENTATION, 'abc', prediction)
    assert [t.index for t in targets] == np.argsort(-np.bincount(labels.ravel())).tolist()[
        : len(targets)
    ]
    target = choose_target(SEGMENTATION, 'abc', targets)
    assert (target.mask == (labels == target.index)).all()
    cams = grad_cam(segmentor, SEGMENTATION, segmentor.backbone, outputs, batch, target)
    # the head does not use the output of stage 2
    assert list(cams) == [1]
    leaf = outputs[0].clone().requires_grad_()
    logits = segmentor.decode_head.predict([leaf], [dict(img_shape=(64, 80))], segmentor.test_cfg)
    logits = logits[0, target.index, :61, :75][torch.from_numpy(target.mask)]
    (gradient,) = torch.autograd.grad(logits.mean(), leaf)
    wanted = (gradient * leaf)[0].sum(0).relu().detach()
    torch.testing.assert_close(cams[1], wanted, rtol=1e-4, atol=1e-8)
    assert wanted.max() > 0


def test_segments_of_a_threshold_with_one_class_have_names():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.tensor([[[0.0, 1.0, 1.0]]])
    targets = find_targets(SEGMENTATION, 'a', SegDataSample(pred_sem_seg=PixelData(data=labels)))
    assert [(target.name, target.index) for target in targets] == [('label 1', 1), ('a', 0)]


DETECTORS = {
    'mask_rcnn_gcvit_shapes': {},
    'retinanet_gcvit-t_fpn_1x_coco': {
        'model.backbone.arch': dict(NANO, _delete_=True),
        'model.backbone.window_size': 4,
        'model.backbone.init_cfg': None,
        'model.neck.in_channels': [16, 32, 64],
        'model.neck.out_channels': 32,
        'model.bbox_head.in_channels': 32,
        'model.bbox_head.feat_channels': 32,
        'model.bbox_head.num_classes': 3,
        'model.test_cfg.score_thr': 0.0,
    },
}


@pytest.mark.parametrize('name', DETECTORS)
def test_detection_is_explained_by_its_probability_before_nms(name):
    """Soft NMS lowers scores without gradients; one-stage heads detach their scores."""
    from mmdet.structures import DetDataSample

    from mmgcvit.analysis.building import build_untrained
    from mmgcvit.engine import load_config

    torch.manual_seed(0)
    cfg = load_config(f'configs/detection/{name}.py', options=DETECTORS[name])
    detector = build_untrained(cfg).eval()
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    batch = batch_of(image, DetDataSample)
    prediction, outputs = predict(detector, batch)
    targets = find_targets(DETECTION, CLASSES, prediction, score_thr=0.0)
    assert len(targets) > 3
    scores = [target.score for target in targets]
    assert scores == sorted(scores, reverse=True)
    head = getattr(detector, 'roi_head', None) or detector.bbox_head
    before = dict(vars(head)), dict(head._modules)
    for target in (targets[0], targets[-1]):
        cams = grad_cam(detector, DETECTION, detector.backbone, outputs, batch, target)
        assert list(cams) == list(detector.backbone.out_indices)
        assert all(c.shape == o.shape[2:] for c, o in zip(cams.values(), outputs, strict=True))
        assert sum(float(each.sum()) for each in cams.values()) > 0
        score = cam._score(detector, DETECTION, batch, target).item()
        if target is targets[0] or name.startswith('retinanet'):
            assert score == pytest.approx(target.score)
        else:
            assert score > target.score
    assert (dict(vars(head)), dict(head._modules)) == before, 'restored'
    assert 'forward' not in vars(detector.backbone)
    again, _ = predict(detector, batch)
    assert torch.equal(again.pred_instances.scores, prediction.pred_instances.scores)


def instances(*rows):
    from mmdet.structures import DetDataSample

    labels, scores = zip(*rows, strict=True) if rows else ((), ())
    sample = DetDataSample()
    sample.pred_instances = InstanceData(
        bboxes=torch.arange(4.0).repeat(len(rows), 1),
        labels=torch.tensor(labels, dtype=torch.long),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
    return sample


@pytest.mark.parametrize(
    ('chosen', 'title'),
    [
        (None, 'detection 0: triangle 0.90'),
        ('circle', 'detection 1: circle 0.80'),
        ('2', 'detection 2: circle 0.40'),
    ],
)
def test_choice_of_a_detection(chosen, title):
    targets = find_targets(DETECTION, CLASSES, instances((0, 0.4), (2, 0.9), (0, 0.8), (1, 0.1)))
    assert choose_target(DETECTION, CLASSES, targets, chosen).title == title


@pytest.mark.parametrize(
    ('task', 'chosen', 'message'),
    [
        (DETECTION, 'rectangle', '--cam rectangle was not predicted: choose from detection 0: tri'),
        (DETECTION, '3', '--cam 3 is not a class .* number of a detection from 0 to 2'),
        (
            DETECTION,
            'cirle',
            r'did you mean circle\?.* the classes are circle; rectangle; tri',
        ),
        (SEGMENTATION, 'circle', '--cam circle was not predicted: choose from triangle 100% of'),
        (SEGMENTATION, '0', '--cam 0 was not predicted'),
        (CLASSIFICATION, 'star', '--cam star is not a class .* index from 0 to 2; the classes'),
        (CLASSIFICATION, '3', '--cam 3 is not a class'),
        (CLASSIFICATION, '-1', '--cam -1 is not a class'),
    ],
)
def test_a_class_that_is_not_there(task, chosen, message):
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample

    prediction = {
        DETECTION: instances((0, 0.4), (2, 0.9), (0, 0.8), (1, 0.1)),
        SEGMENTATION: SegDataSample(),
        CLASSIFICATION: DataSample().set_pred_score(torch.tensor([0.2, 0.7, 0.1])),
    }[task]
    if task is SEGMENTATION:
        prediction.pred_sem_seg = PixelData(data=torch.full((1, 4, 4), 2))
    targets = find_targets(task, CLASSES, prediction)
    with pytest.raises(UserError, match=message):
        choose_target(task, CLASSES, targets, chosen)


def test_no_detection_above_the_threshold():
    targets = find_targets(DETECTION, CLASSES, instances((0, 0.4)), score_thr=0.5)
    with pytest.raises(UserError, match='pass a lower --score-thr'):
        choose_target(DETECTION, CLASSES, targets, 'circle')


def test_classes_in_the_order_of_their_probability():
    from mmpretrain.structures import DataSample

    prediction = DataSample().set_pred_score(torch.tensor([0.2, 0.7, 0.1]))
    targets = find_targets(CLASSIFICATION, CLASSES, prediction)
    assert [t.title for t in targets] == ['rectangle 0.70', 'circle 0.20', 'triangle 0.10']
    assert choose_target(CLASSIFICATION, CLASSES, targets, '2').name == 'triangle'
