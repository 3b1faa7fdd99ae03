"""Our operators in mmcv, for cases without a compiled CPU operator to compare with.

The references are loops in float64.
"""

import functools
import itertools
import math

import mmcv.ops
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

from mmgcvit.mmcv_ops import _ext
from mmgcvit.mmcv_ops import roi_align as roi_align_module

# random directions, since checking every entry would take minutes
gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=True)
HALF = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)


def random_boxes(count, extent=50.0):
    corner = torch.rand(count, 2) * extent
    return torch.cat((corner, corner + 1 + torch.rand(count, 2) * extent / 2), dim=1)


def regions(*boxes):
    """Return regions that alternate between two images."""
    images = torch.arange(len(boxes)) % 2
    return torch.cat((images[:, None].double(), torch.tensor(boxes).double()), dim=1)


# inside the map, across each edge, outside the map, a single pixel, larger than the map
BOXES = [
    (4.0, 3, 21, 17),
    (-9.0, -7, 11, 8),
    (30.0, 20, 75, 66),
    (200.0, 210, 220, 230),
    (12.0, 12, 13, 13),
    (-40.0, -30, 100, 90),
]


class TestNms:
    def test_equal_scores_keep_their_order(self):
        boxes = torch.tensor([[0.0, 0, 8, 8], [30, 30, 38, 38], [0, 0, 8, 8], [60, 60, 68, 68]])
        kept = mmcv.ops.nms(boxes, torch.tensor([0.5, 0.5, 0.5, 0.9]), 0.5)[1]
        assert kept.tolist() == [3, 0, 1]

    def test_threshold_is_compared_in_single_precision(self):
        """The overlap equals 0.7 in float32, which is less than 0.7 in float64."""
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 7, 10]])
        for threshold in (0.7, torch.tensor(0.7).item()):
            assert len(mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold)[1]) == 2

    @pytest.mark.parametrize(
        'suppress', [mmcv.ops.nms, mmcv.ops.soft_nms], ids=lambda function: function.__name__
    )
    def test_no_boxes(self, suppress):
        dets, kept = suppress(torch.zeros(0, 4), torch.zeros(0), 0.5)
        assert dets.shape == (0, 5)
        assert kept.tolist() == []
        assert kept.dtype == torch.long

    @HALF
    def test_half_precision(self, dtype):
        boxes, scores = random_boxes(60).to(dtype), torch.linspace(0.1, 0.9, 60).to(dtype)
        dets, kept = mmcv.ops.nms(boxes, scores, 0.4)
        assert dets.dtype == dtype
        assert kept.tolist() == mmcv.ops.nms(boxes.float(), scores.float(), 0.4)[1].tolist()

    def test_other_strides(self):
        boxes, scores = random_boxes(40), torch.rand(40)
        expected = mmcv.ops.nms(boxes, scores, 0.3)[1]
        apart = torch.empty(4, 40).copy_(boxes.T).T, torch.rand(40, 2)
        apart[1][:, 1] = scores
        assert mmcv.ops.nms(apart[0], apart[1][:, 1], 0.3)[1].tolist() == expected.tolist()

    def test_soft_nms_removes_boxes_below_min_score(self):
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [40, 40, 50, 50]])
        scores = torch.tensor([0.9, 0.8, 0.04])
        dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.3, min_score=0.05)
        assert kept.tolist() == [0, 1]
        assert dets[1, 4].item() == pytest.approx(0.8 * (1 - 0.9))

    def test_soft_nms_keeps_boxes_without_area(self):
        boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 5, 5], [5, 5, 5, 5]])
        kept = mmcv.ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method='gaussian')[1]
        assert kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    'mode, aligned, offset', list(itertools.product(['iou', 'iof'], [False, True], [0, 1]))
)
def test_bbox_overlaps(mode, aligned, offset):
    first, second = random_boxes(7), random_boxes(7)

    def overlap(a, b):
        sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset for i in (0, 1)]
        both = max(sides[0], 0) * max(sides[1], 0)
        areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
        return both / (areas[0] + areas[1] - both if mode == 'iou' else areas[0])

    a, b = first.tolist(), second.tolist()
    pairs = zip(a, b, strict=True) if aligned else itertools.product(a, b)
    expected = torch.tensor([overlap(*pair) for pair in pairs])
    found = mmcv.ops.bbox_overlaps(first, second, mode, aligned, offset)
    assert found.shape == ((7,) if aligned else (7, 7))
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('offset', 'expected'), [(0, math.nan), (1, 0.0)])
def test_overlaps_of_boxes_without_area(offset, expected):
    box = torch.tensor([[5.0, 5, 5 - offset, 5 - offset]])
    found = mmcv.ops.bbox_overlaps(box, box, offset=offset)
    torch.testing.assert_close(found, torch.tensor([[expected]]), equal_nan=True)


class TestRoiAlign:
    @pytest.mark.parametrize('ratio', [0, 2])
    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_gradients(self, mode, ratio):
        x = torch.rand(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
        rois = regions(*BOXES)
        gradcheck(lambda x: mmcv.ops.roi_align(x, rois, (3, 2), 0.25, ratio, mode, True), x)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_no_regions_and_regions_without_area(self, mode):
        x = torch.rand(1, 3, 8, 8, requires_grad=True)
        assert mmcv.ops.roi_align(x, torch.zeros(0, 5), 7, 1.0, 0, mode, True).shape == (0, 3, 7, 7)
        point = torch.tensor([[0.0, 4, 4, 4, 4]])
        out = mmcv.ops.roi_align(x, point, 2, 1.0, 0, mode, True)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert not out.any()
        assert not grad.any()

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_other_strides(self, mode):
        x = torch.rand(2, 3, 9, 11).contiguous(memory_format=torch.channels_last)
        rois = regions(*BOXES).float().T.contiguous().T
        arguments = ((3, 2), 0.25, 2, mode, True)
        expected = mmcv.ops.roi_align(x.contiguous(), rois.contiguous(), *arguments)
        assert torch.equal(mmcv.ops.roi_align(x, rois, *arguments), expected)

    def test_max_pooling_of_many_samples_in_parts(self, monkeypatch):
        x, rois = torch.rand(2, 3, 9, 11, requires_grad=True), regions(*BOXES).float()

        def run():
            out = mmcv.ops.roi_align(x, rois, (3, 2), 0.25, 0, 'max', True)
            return out, *torch.autograd.grad(out.square().sum(), x)

        expected = run()
        monkeypatch.setattr(roi_align_module, 'SAMPLES_AT_ONCE', 1)
        for found, whole in zip(run(), expected, strict=True):
            torch.testing.assert_close(found, whole)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    @pytest.mark.parametrize('value', [math.nan, math.inf])
    def test_regions_must_be_finite(self, mode, value):
        """torchvision would read from arbitrary memory addresses."""
        rois = torch.tensor([[0, value, 0, 5, 5]])
        with pytest.raises(ValueError, match='must be finite'):
            mmcv.ops.roi_align(torch.rand(1, 2, 8, 8), rois, 2, 1.0, 2, mode, True)

    @HALF
    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_half_precision(self, mode, dtype):
        x = torch.rand(2, 3, 9, 11).to(dtype).requires_grad_()
        rois = regions(*BOXES).to(dtype)
        out = mmcv.ops.roi_align(x, rois, 3, 0.25, 0, mode, True)
        assert out.dtype == dtype
        (grad,) = torch.autograd.grad(out.sum(), x)
        wide = x.detach().float().requires_grad_()
        expected = mmcv.ops.roi_align(wide, rois.float(), 3, 0.25, 0, mode, True)
        assert torch.equal(out, expected.to(dtype))
        (expected_grad,) = torch.autograd.grad(expected.sum(), wide)
        assert torch.equal(grad, expected_grad.to(dtype))


def reference_roi_pool(x, rois, size, scale):
    """Compute the maximum of each bin and its index in the map with loops."""
    height, width = x.shape[2:]
    out = x.new_zeros(len(rois), x.shape[1], *size)
    argmax = torch.full(out.shape, -1)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        sides = (y2 - y1) / size[0], (x2 - x1) / size[1]
        for c, i, j in itertools.product(range(x.shape[1]), range(size[0]), range(size[1])):
            rows = math.floor(y1 + i * sides[0]), math.ceil(y1 + (i + 1) * sides[0])
            columns = math.floor(x1 + j * sides[1]), math.ceil(x1 + (j + 1) * sides[1])
            best = -math.inf
            for row in range(max(rows[0], 0), min(rows[1], height)):
                for column in range(max(columns[0], 0), min(columns[1], width)):
                    if x[int(image), c, row, column] > best:
                        best = x[int(image), c, row, column].item()
                        out[r, c, i, j], argmax[r, c, i, j] = best, row * width + column
    return out, argmax


# additionally without width, and to the left of the map
MORE_BOXES = [*BOXES, (20.0, 20, 18, 30), (-60.0, 4, -20, 9)]


class TestRoiPool:
    def test_matches_mmcv_definition(self):
        x = torch.randn(2, 3, 9, 13).mul(4).round().double()  # many bins have equal values
        rois = regions(*MORE_BOXES)
        expected, argmax = reference_roi_pool(x, rois, (3, 2), 0.25)
        found = torch.zeros_like(expected)
        found_argmax = torch.zeros(expected.shape, dtype=torch.int)
        _ext.roi_pool_forward(x, rois, found, found_argmax, 3, 2, 0.25)
        assert torch.equal(found, expected)
        assert torch.equal(found_argmax.long(), argmax)
        assert (argmax == -1).any() and (argmax >= 0).any()

    def test_gradients(self):
        x = torch.rand(2, 2, 9, 13, dtype=torch.float64, requires_grad=True)
        rois = regions(*MORE_BOXES)
        gradcheck(lambda x: mmcv.ops.roi_pool(x, rois, (3, 2), 0.25), x)

    def test_no_regions(self):
        x = torch.rand(1, 2, 4, 4, requires_grad=True)
        out = mmcv.ops.roi_pool(x, torch.zeros(0, 5), 2, 1.0)
        assert out.shape == (0, 2, 2, 2)
        assert not torch.autograd.grad(out.sum(), x)[0].any()

    @HALF
    def test_half_precision(self, dtype):
        x, rois = torch.rand(2, 3, 9, 13).to(dtype), regions(*BOXES).to(dtype)
        expected = mmcv.ops.roi_pool(x.float(), rois.float(), 3, 0.25)
        assert torch.equal(mmcv.ops.roi_pool(x, rois, 3, 0.25), expected.to(dtype))


def convolution_inputs(dtype=torch.float64):
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(6, 2, 3, 3)
    offset, mask, bias = torch.randn(2, 36, 6, 7), torch.rand(2, 18, 6, 7), torch.randn(6)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, offset, mask, weight, bias)]


class TestDeformConv:
    """Convolution with two channel groups and two deformable groups."""

    def test_gradients_of_v1(self):
        x, offset, _, weight, _ = convolution_inputs()
        gradcheck(
            lambda *inputs: mmcv.ops.deform_conv2d(*inputs, 1, 1, 1, 2, 2), (x, offset, weight)
        )

    @pytest.mark.parametrize('with_bias', [True, False])
    def test_gradients_of_v2(self, with_bias):
        inputs = convolution_inputs()[: 4 + with_bias]
        gradcheck(
            lambda x, offset, mask, weight, bias=None: mmcv.ops.modulated_deform_conv2d(
                x, offset, mask, weight, bias, 1, 1, 1, 2, 2
            ),
            inputs,
        )

    def test_zero_offsets_give_a_convolution(self):
        x, offset, mask, weight, bias = convolution_inputs()
        still = torch.zeros_like(offset), torch.ones_like(mask)
        found = mmcv.ops.modulated_deform_conv2d(x, *still, weight, bias, 1, 1, 1, 2, 2)
        torch.testing.assert_close(found, torch.conv2d(x, weight, bias, 1, 1, 1, 2))

    def test_no_images(self):
        """mmcv rejects an empty batch in Python, but later versions may not."""
        x, offset, mask, weight, bias = (tensor.detach() for tensor in convolution_inputs())
        out = torch.zeros(0, 6, 6, 7, dtype=x.dtype)
        inputs = x[:0], weight, bias, None, offset[:0], mask[:0], out, None
        _ext.modulated_deform_conv_forward(*inputs, 3, 3, 1, 1, 1, 1, 1, 1, 2, 2, True)

    @HALF
    def test_half_precision(self, dtype):
        inputs = convolution_inputs(dtype)
        out = mmcv.ops.modulated_deform_conv2d(*inputs, 1, 1, 1, 2, 2)
        assert out.dtype == dtype
        grads = torch.autograd.grad(out.sum(), inputs)
        wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
        expected = mmcv.ops.modulated_deform_conv2d(*wide, 1, 1, 1, 2, 2)
        assert torch.equal(out, expected.to(dtype))
        expected_grads = torch.autograd.grad(expected.sum(), wide)
        for grad, expected in zip(grads, expected_grads, strict=True):
            assert torch.equal(grad, expected.to(dtype))


def reference_attention(value, shapes, starts, locations, weights):
    """Compute multi-scale deformable attention with loops over bilinear samples."""
    images, queries, heads, levels, points, _ = locations.shape
    out = value.new_zeros(images, queries, heads, value.shape[-1])
    for n, q, h, level, p in itertools.product(
        range(images), range(queries), range(heads), range(levels), range(points)
    ):
        height, width = shapes[level].tolist()
        x, y = (locations[n, q, h, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row, column in itertools.product(*((math.floor(c), math.floor(c) + 1) for c in (y, x))):
            if 0 <= row < height and 0 <= column < width:
                factor = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[n, q, h, level, p]
                out[n, q, h] += factor * value[n, starts[level] + row * width + column, h]
    return out.flatten(2)


class TestMultiScaleDeformableAttention:
    """Call the autograd function that mmcv uses on a GPU. On a CPU, mmcv bypasses it."""

    def inputs(self, dtype=torch.float64):
        shapes = torch.tensor([(5, 7), (3, 4)])
        starts = torch.tensor([0, 35])
        locations = torch.rand(2, 3, 2, 2, 4, 2) * 1.4 - 0.2  # some are outside the map
        tensors = torch.randn(2, 47, 2, 3), locations, torch.rand(2, 3, 2, 2, 4)
        value, locations, weights = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        return value, shapes, starts, locations, weights

    def test_against_loops(self):
        inputs = self.inputs()
        found = MultiScaleDeformableAttnFunction.apply(*inputs, 64)
        torch.testing.assert_close(found, reference_attention(*inputs))

    def test_gradients(self):
        inputs = self.inputs()
        gradcheck(lambda *inputs: MultiScaleDeformableAttnFunction.apply(*inputs, 64), inputs)

    @HALF
    def test_half_precision(self, dtype):
        inputs = self.inputs(dtype)
        wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]
        found = MultiScaleDeformableAttnFunction.apply(*inputs, 64)
        expected = MultiScaleDeformableAttnFunction.apply(*wide, 64)
        assert torch.equal(found, expected.to(dtype))


FOCAL = pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
CLASS_WEIGHTS = pytest.mark.parametrize('weight', [None, torch.tensor([0.5, 2.0, 3.0])], ids=str)


class TestFocalLosses:
    logits = torch.tensor([[1.5, -2, 0.3], [-0.7, 0.1, 4], [9, -9, 0.2], [0.4, 0.6, -1]]).double()

    @CLASS_WEIGHTS
    @FOCAL
    def test_sigmoid(self, gamma, weight):
        target, alpha = torch.tensor([0, 2, 1, 3]), 0.25  # 3 is background
        weight = weight if weight is None else weight.double()
        found = mmcv.ops.sigmoid_focal_loss(self.logits, target, gamma, alpha, weight, 'none')
        for n, c in itertools.product(range(4), range(3)):
            p = 1 / (1 + math.exp(-self.logits[n, c].item()))
            if target[n] == c:
                expected = -alpha * (1 - p) ** gamma * math.log(p)
            else:
                expected = -(1 - alpha) * p**gamma * math.log(1 - p)
            if weight is not None and target[n] < 3:
                expected *= weight[target[n]].item()
            assert found[n, c].item() == pytest.approx(expected)
        logits = self.logits.clone().requires_grad_()
        gradcheck(
            lambda x: mmcv.ops.sigmoid_focal_loss(x, target, gamma, alpha, weight, 'mean'), logits
        )

    @CLASS_WEIGHTS
    @FOCAL
    def test_softmax(self, gamma, weight):
        target, alpha = torch.tensor([0, 2, 1, -1]), 0.25  # -1 is ignored
        weight = weight if weight is None else weight.double()
        found = mmcv.ops.softmax_focal_loss(self.logits, target, gamma, alpha, weight, 'none')
        for n, label in enumerate(target.tolist()):
            p = math.exp(self.logits[n, label]) / self.logits[n].exp().sum().item()
            expected = -alpha * (1 - p) ** gamma * math.log(p)
            if weight is not None:
                expected *= weight[label].item()
            assert found[n].item() == pytest.approx(expected if label >= 0 else 0.0)
        logits = self.logits.clone().requires_grad_()
        gradcheck(
            lambda x: mmcv.ops.softmax_focal_loss(x, target, gamma, alpha, weight, 'mean'), logits
        )

    def test_certain_samples_have_finite_gradients(self):
        for loss in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
            logits = torch.tensor([[300.0, -300.0]], requires_grad=True)
            loss(logits, torch.tensor([0]), 0.5).backward()
            assert logits.grad.isfinite().all()

    @HALF
    def test_half_precision(self, dtype):
        target = torch.tensor([0, 2, 1, 0])
        for loss in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
            # limited range, since mmcv computes the softmax in half precision
            logits = self.logits.clamp(-4, 4).to(dtype)
            found = loss(logits, target, 2.0, 0.25, None, 'none')
            assert found.dtype == dtype
            expected = loss(logits.float(), target, 2.0, 0.25, None, 'none')
            torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=1e-3)


def test_error_names_unavailable_operator():
    features, masks = torch.rand(1, 4, 4, 4), torch.rand(1, 25, 8, 8)
    with pytest.raises(NotImplementedError, match=r"'carafe_forward' is not available.*Build mmcv"):
        mmcv.ops.carafe(features, masks, 5, 1, 2)


def test_environment_dumps_show_where_operators_come_from():
    for version in (mmcv.ops.get_compiler_version(), mmcv.ops.get_compiling_cuda_version()):
        assert 'torchvision' in version and 'mmgcvit' in version
