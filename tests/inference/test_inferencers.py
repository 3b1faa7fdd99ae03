"""What is drawn, and what the records contain."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from pycocotools import mask as rle
from untrained import CONFIGS

from mmgcvit.errors import UserError
from mmgcvit.inference import build_inferencer

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def gray(tmp_path):
    """A gray image of 80×120 pixels, of which the first channel of the file (blue) is darker."""
    image = np.full((80, 120, 3), 128, np.uint8)
    image[..., 0] = 100
    cv2.imwrite(str(tmp_path / 'gray.png'), image)
    return tmp_path / 'gray.png', image[..., ::-1]


def predicting(models, monkeypatch, task, sample, palette=(RED, GREEN, RED), **options):
    """A model that predicts the sample whatever the image."""
    options['test_dataloader.dataset.metainfo.palette'] = list(palette)
    trained = models.load(task, **(options if task == 'detection' else {}))
    monkeypatch.setattr(trained.model, 'test_step', lambda batch: [sample])
    return trained


def instances():
    """An ellipse of class 1 and a rectangle of class 0 with a low score."""
    masks = np.zeros((2, 80, 120), np.uint8)
    cv2.ellipse(masks[0], (40, 40), (25, 15), 0, 0, 360, 1, -1)
    masks[1, 10:30, 80:110] = 1
    sample = DetDataSample()
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[15.0, 25.0, 66.0, 56.0], [80.0, 10.0, 110.0, 30.0]]),
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.9, 0.2]),
        masks=torch.from_numpy(masks).bool(),
    )
    return sample, masks.astype(bool)


def test_masks_in_the_record_are_those_in_the_picture(models, monkeypatch, gray):
    sample, masks = instances()
    path, image = gray
    result = build_inferencer(predicting(models, monkeypatch, 'detection', sample), 0.5).infer(path)
    assert result.summary == '1 rectangle' and result.label_map is None
    record = result.record
    assert (record['height'], record['width']) == (80, 120)
    assert record['names'] == ['rectangle', 'circle'] and record['labels'] == [1, 0]
    assert record['scores'] == pytest.approx([0.9, 0.2]) and len(record['bboxes']) == 2
    assert np.array_equal(rle.decode(record['masks']).transpose(2, 0, 1), masks)

    assert result.picture.shape == image.shape
    changed = (np.abs(result.picture.astype(int) - image) > 8).any(-1)
    # away from lines
    inside = cv2.erode(masks[0].astype(np.uint8), np.ones((13, 13))).astype(bool)
    assert changed[inside].mean() > 0.99, 'the mask is drawn'
    assert not changed[10:25, 80:110].any(), 'the other has a low score'
    assert not changed[60:].any()
    red, green, blue = result.picture[inside].mean(0)
    assert green > max(red, blue) + 60, 'in the color of its class'


def test_the_threshold_selects_what_is_drawn_only(models, monkeypatch, gray):
    sample, masks = instances()
    path, image = gray
    trained = predicting(models, monkeypatch, 'detection', sample)
    drawn = {}
    for threshold in (0.1, 0.5, 0.95):
        result = build_inferencer(trained, threshold).infer(path)
        assert len(result.record['scores']) == 2
        changed = (result.picture != image).any(-1)
        drawn[threshold] = [changed[mask].mean() > 0.5 for mask in masks], result.summary
    assert drawn == {
        0.1: ([True, True], '1 rectangle, 1 circle'),
        0.5: ([True, False], '1 rectangle'),
        0.95: ([False, False], 'no instances'),
    }


@pytest.mark.parametrize('with_segments', [True, False])
def test_segments_of_a_panoptic_model(models, monkeypatch, gray, with_segments):
    sample, (ellipse, _) = instances()
    path, image = gray
    del sample.pred_instances
    ids = torch.full((1, 80, 120), 3)  # the number of classes: pixels without a segment
    if with_segments:
        ids[0, 60:] = 2
        ids[0, ellipse] = 1 + 2 * 1000
    sample.pred_panoptic_seg = PixelData(sem_seg=ids)
    result = build_inferencer(predicting(models, monkeypatch, 'detection', sample)).infer(path)
    if not with_segments:
        assert (result.record['segments'], result.summary) == ([], 'no instances')
        assert np.array_equal(result.picture, image)
        return
    assert result.record['segments'] == [
        dict(label=2, name='triangle', pixels=20 * 120),
        dict(label=1, name='rectangle', pixels=int(ellipse.sum())),
    ]
    assert result.summary == '1 triangle, 1 rectangle'
    assert not np.array_equal(result.picture[30:50, 30:50], image[30:50, 30:50])


def test_a_segmentor_has_a_label_map(models, monkeypatch, gray):
    labels = torch.full((1, 80, 120), 3)
    labels[:, 20:60, 30:90] = 149
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    path, image = gray
    trained = predicting(models, monkeypatch, 'segmentation', sample)
    result = build_inferencer(trained).infer(path)
    assert np.array_equal(result.label_map, labels[0]) and result.label_map.dtype == np.uint8
    assert result.record['segments'] == [
        dict(label=3, name='floor', pixels=7200),
        dict(label=149, name='flag', pixels=2400),
    ]
    assert result.summary == 'floor 75%, flag 25%'
    # half of the image and half of the color of the class
    for row, column, label in ((75, 5, 3), (55, 85, 149)):
        expected = (image[row, column].astype(int) + trained.palette[label]) / 2
        assert np.abs(result.picture[row, column] - expected).max() <= 2


def test_a_segmentor_with_one_probability_for_two_classes(models, monkeypatch, gray):
    labels = torch.zeros(1, 80, 120)  # floats: mmseg compares the probability with its threshold
    labels[:, 20:60] = 1
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    trained = predicting(models, monkeypatch, 'segmentation', sample)
    result = build_inferencer(trained).infer(gray[0])
    assert result.record['segments'] == [
        dict(label=0, name='wall', pixels=4800),
        dict(label=1, name='building', pixels=4800),
    ]
    assert result.label_map.dtype == np.uint8 and np.array_equal(result.label_map, labels[0])


def test_a_classifier_has_scores(models, monkeypatch, gray):
    sample = DataSample().set_pred_score(torch.tensor([0.25, 0.75])).set_pred_label(1)
    trained = predicting(models, monkeypatch, 'classification', sample)
    result = build_inferencer(trained).infer(gray[0])
    assert result.record == dict(
        *(dict(height=80, width=120, pred_scores=[0.25, 0.75], pred_label=1),),
        pred_score=0.75,
        pred_class='class 1',
    )
    assert result.summary == 'class 1 0.75'
    assert min(result.picture.shape[:2]) == 224, 'enlarged, so that the text is legible'
    lower, upper = result.picture[150:], result.picture[:100, :150]
    assert (lower == gray[1][0, 0]).all() and (upper != gray[1][0, 0]).mean() > 0.2


@pytest.mark.parametrize('task', CONFIGS)
def test_visualizers_that_draw_nothing_or_log_to_a_server(models, gray, task):
    trained = models.load(task)
    # configs that inherit from those of the libraries have the scope, too
    scope = trained.cfg.default_scope
    own = dict(trained.cfg.visualizer, vis_backends=[dict(type='NoServer')], _scope_=scope)
    for visualizer in (dict(type='Visualizer'), own):
        trained.cfg.visualizer = visualizer
        result = build_inferencer(trained, 0.0 if task == 'detection' else None).infer(gray[0])
        assert (result.picture[:80, :120] != gray[1]).any()


@pytest.mark.parametrize('task', CONFIGS)
def test_it_can_be_called_like_the_inferencers_of_the_libraries(models, task):
    inferencer = build_inferencer(models.load(task))
    images = [str(path) for path in models.images]
    found = inferencer(images)
    found = found['predictions'] if task != 'classification' else found
    expected = [inferencer.infer(path) for path in images]
    if task == 'segmentation':
        pairs = zip(found, (result.label_map for result in expected), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)
    else:
        scores = dict(detection='scores', classification='pred_scores')[task]
        assert [list(each[scores]) for each in found] == [
            result.record[scores] for result in expected
        ]


@pytest.mark.parametrize(
    ('task', 'threshold', 'message'),
    [
        ('segmentation', 0.3, 'config for segmentation: leave it out'),
        ('classification', 0.3, 'config for classification: leave it out'),
        ('detection', 1.5, r'--score-thr 1\.5 is not allowed: use a number from 0 to 1'),
        ('detection', -0.1, 'is not allowed'),
        ('detection', float('nan'), 'is not allowed'),
    ],
)
def test_thresholds_that_are_refused(models, task, threshold, message):
    with pytest.raises(UserError, match=message):
        build_inferencer(models.load(task), threshold)
