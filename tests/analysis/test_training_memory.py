"""Estimates of training memory, from measurements of which the parts are known."""

import pytest

from mmgcvit.analysis.training_memory import TrainingMemory

PARAMS = {
    'det_gcvit-xxt': 30_000_000,
    'det_gcvit-t': 50_000_000,
    'det_gcvit-l': 230_000_000,
    'seg_gcvit-xxt': 40_000_000,
    'seg_gcvit-b': 100_000_000,
    'gcvit_xxt': 10_000_000,
}
# 16 bytes per parameter, and activations of the backbone: xxtiny 0.5 GB in an image of 512×512 and
# 2 GB in one of 800×1280; tiny 1 GB, base 1.5 GB and large 3 GB in one of 512×512. On the GPU, tiny
# 2 GB and base 2.5 GB. Heads: 0.7 GB in the detector and 0.4 GB in the segmentor.
MEASURED = {
    'memory-backbones': {
        'rows': [
            ['`xxtiny`', '10.0 M', '0.66 GB', '0.98 GB'],
            ['`tiny`', '20.0 M', '1.32 GB', '2.00 GB'],
            ['`base`', '90.0 M', '2.94 GB', '9.00 GB'],
            ['`large`', '200.0 M', '6.20 GB', '9.00 GB'],
        ]
    },
    'memory-networks': {
        'rows': [
            ['det_gcvit-xxt', 'CPU, float32', '800×1280', '2', '5.88 GB'],
            ['backbone `xxtiny`', 'CPU, float32', '800×1280', '1', '2.16 GB'],
            ['seg_gcvit-xxt', 'CPU, float32', '512×512', '2', '2.44 GB'],
            ['backbone `xxtiny`', 'CPU, float32', '512×512', '1', '0.66 GB'],
            ['det_gcvit-t', 'H100, bfloat16', '800×1280', '2', '5.00 GB'],
        ]
    },
    'gpu': {
        'rows': [
            ['tiny', '800×1280', 'forward', '36 ms'],
            ['', '', 'memory in training', '4.32 GB'],
            ['base', '800×1280', 'forward', '41 ms'],
            ['', '', 'memory in training', '6.44 GB'],
            ['base, float32', '800×1280', 'memory in training', '9.00 GB'],
        ]
    },
}


@pytest.fixture
def memory():
    return TrainingMemory(MEASURED, PARAMS)


def test_heads_are_what_the_backbone_does_not_need(memory):
    assert memory.heads == pytest.approx({'det': 0.7, 'seg': 0.4})


def test_a_detector_scales_the_nearest_backbone_of_the_gpu(memory):
    # large is scaled from base, by 3 GB / 1.5 GB
    assert memory.detector('det_gcvit-l', 'large', 2) == pytest.approx(3.68 + 2 * (2.5 * 2 + 0.7))
    assert memory.detector('det_gcvit-l', 'base', 1) == pytest.approx(3.68 + 2.5 + 0.7)


def test_segmentors_and_classifiers_need_what_they_need_on_the_cpu(memory):
    assert memory.segmentor('seg_gcvit-b', 'base', 4) == pytest.approx(1.6 + 4 * (1.5 + 0.4))
    # 0.16 GB for the parameters, and 0.82 GB for 8 images
    assert memory.classifier('gcvit_xxt', 'xxtiny', 32) == pytest.approx(0.16 + 4 * 0.82)


def test_estimates_are_compared_with_the_gpu(memory):
    (backbone, detector) = memory.checks()
    assert backbone[:2] == ('`base` from `tiny`', '800×1280')
    assert backbone[2:] == pytest.approx((6.44, 1.44 + 2 * 2 * 1.5))
    assert detector[:2] == ('det_gcvit-t', '800×1280')
    assert detector[2:] == pytest.approx((5, 0.8 + 2 * (2 + 0.7)))
