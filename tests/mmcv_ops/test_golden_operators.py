"""Outputs of mmcv with our operators, compared with outputs of mmcv's compiled operators."""

from pathlib import Path

import mmcv.ops
import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / 'data' / 'golden_ops'


def files(pattern):
    found = sorted(GOLDEN.glob(f'{pattern}.npz'))
    assert found, pattern
    return pytest.mark.parametrize('file', found, ids=lambda file: file.stem)


def read(file):
    with np.load(file) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def assert_close(actual, expected):
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= 1e-6, error


def assert_same_detections(actual, case):
    dets, keep = actual
    assert keep.tolist() == case['keep'].tolist()
    assert_close(dets, case['dets'])


@files('nms_offset*')
def test_nms(file):
    case = read(file)
    threshold, offset = case['threshold'].item(), case['offset'].item()
    assert_same_detections(
        mmcv.ops.nms(case['boxes'], case['scores'], threshold, offset=offset), case
    )


def test_nms_with_limits():
    case = read(GOLDEN / 'nms_limits.npz')
    limits = {name: case[name].item() for name in ('score_threshold', 'max_num')}
    threshold = case['threshold'].item()
    assert_same_detections(mmcv.ops.nms(case['boxes'], case['scores'], threshold, **limits), case)


@files('soft_nms_*')
def test_soft_nms(file):
    case = read(file)
    method = file.stem.rpartition('_')[2]
    settings = dict(iou_threshold=0.3, sigma=0.5, min_score=1e-3, method=method)
    assert_same_detections(mmcv.ops.soft_nms(case['boxes'], case['scores'], **settings), case)


@pytest.mark.parametrize(
    'name, nms_cfg',
    [
        ('batched_nms_0.5', dict(type='nms', iou_threshold=0.5)),
        ('batched_nms_0.5_True', dict(type='nms', iou_threshold=0.5, class_agnostic=True)),
        ('batched_nms_0.6_10', dict(type='nms', iou_threshold=0.6, split_thr=10)),
        ('batched_soft_nms_0.5', dict(type='soft_nms', iou_threshold=0.5)),
    ],
)
def test_batched_nms(name, nms_cfg):
    case = read(GOLDEN / f'{name}.npz')
    found = mmcv.ops.batched_nms(case['boxes'], case['scores'], case['ids'], nms_cfg)
    assert_same_detections(found, case)


def test_nms_match():
    case = read(GOLDEN / 'nms_match.npz')
    dets = torch.cat((case['boxes'], case['scores'][:, None]), dim=1)
    groups = mmcv.ops.nms_match(dets, 0.5)
    assert [len(group) for group in groups] == case['lengths'].tolist()
    assert torch.cat(groups).tolist() == case['members'].tolist()


@files('roi_align_*')
def test_roi_align(file):
    _, _, mode, aligned, ratio = file.stem.split('_')
    case = read(file)
    x = case['x'].requires_grad_()
    out = mmcv.ops.roi_align(
        x, case['rois'], (7, 5), 0.25, int(ratio[-1]), mode, aligned == 'aligned1'
    )
    assert_close(out, case['out'])
    (grad,) = torch.autograd.grad(out, x, case['cotangent'])
    assert_close(grad, case['grad'])


@files('modulated_deform_conv_*')
def test_modulated_deform_conv(file):
    case = read(file)
    inputs = [case[name].requires_grad_() for name in ('x', 'offset', 'mask', 'weight', 'bias')]
    groups = int(file.stem[-1])
    out = mmcv.ops.modulated_deform_conv2d(*inputs, 1, 1, 1, 1, groups)
    assert_close(out, case['out'])
    for i, grad in enumerate(torch.autograd.grad(out, inputs, case['cotangent'])):
        assert_close(grad, case[f'grad{i}'])


@files('deform_conv_*')
def test_deform_conv(file):
    case = read(file)
    inputs = [case[name].requires_grad_() for name in ('x', 'offset', 'weight')]
    out = mmcv.ops.deform_conv2d(*inputs, 2, 1, 1, 1, int(file.stem[-1]))
    assert_close(out, case['out'])
    for i, grad in enumerate(torch.autograd.grad(out, inputs, case['cotangent'])):
        assert_close(grad, case[f'grad{i}'])
