"""Panoptic annotations and panoptic quality."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, TRANSFORMS, init_default_scope

from mmgcvit.datasets import draw_shapes
from mmgcvit.evaluation.panoptic import VOID, compare
from mmgcvit.panoptic import segment_colors, segment_ids

CLASSES = ('circle', 'rectangle', 'triangle', 'background')
BACKGROUND = CLASSES.index('background')


@pytest.fixture(scope='module')
def annotations(tmp_path_factory):
    """The folder of COCO's annotations of drawn shapes, with panoptic ones."""
    root = tmp_path_factory.mktemp('panoptic') / 'shapes'
    draw_shapes(root, num_train=1, num_val=4, progress=False, panoptic=True)
    return root / 'coco/annotations'


def ids_of(annotations, name):
    colors = cv2.imread(str(annotations / 'panoptic_val2017' / name))[..., ::-1]
    return segment_ids(colors)


def test_ids_survive_their_colors():
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], np.int32)
    assert (segment_ids(segment_colors(ids)) == ids).all()
    assert segment_colors(ids)[1, 0].tolist() == [0, 1, 0]  # red, green, blue


def test_drawn_segments_cover_the_image_and_agree_with_the_instances(annotations):
    panoptic = json.loads((annotations / 'panoptic_val2017.json').read_text())
    instances = json.loads((annotations / 'instances_val2017.json').read_text())
    assert [each['name'] for each in panoptic['categories']] == list(CLASSES)
    assert [each['isthing'] for each in panoptic['categories']] == [1, 1, 1, 0]
    assert panoptic['images'] == instances['images']
    for annotation in panoptic['annotations']:
        ids = ids_of(annotations, annotation['file_name'])
        segments = annotation['segments_info']
        assert set(np.unique(ids)) == {each['id'] for each in segments}
        for each in segments:
            rows, columns = np.nonzero(ids == each['id'])
            x, y, width, height = each['bbox']
            assert (columns.min(), rows.min()) == (x, y)
            assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
            assert each['area'] == len(rows) and each['iscrowd'] == 0
        own = [
            each for each in instances['annotations'] if each['image_id'] == annotation['image_id']
        ]
        things = [each for each in segments if each['category_id'] - 1 != BACKGROUND]
        assert [each['category_id'] for each in things] == [each['category_id'] for each in own]
        for thing, instance in zip(things, own, strict=True):  # without parts of a few pixels
            assert 0 <= thing['area'] - instance['area'] < 0.02 * instance['area'] + 50


def test_the_transform_loads_labels_and_masks(annotations):
    from mmdet.datasets import CocoPanopticDataset

    init_default_scope('mmdet')
    load = TRANSFORMS.build(dict(type='mmgcvit.LoadPanopticAnnotations'))
    dataset = CocoPanopticDataset(
        data_root=str(annotations.parent),
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
        metainfo=dict(classes=CLASSES, thing_classes=CLASSES[:3], stuff_classes=CLASSES[3:]),
        pipeline=[],
    )
    for number in range(len(dataset)):
        info = dataset.get_data_info(number)
        results = load(dict(info, ori_shape=(info['height'], info['width'])))
        labels, masks = results['gt_seg_map'], results['gt_masks'].masks.astype(bool)
        assert labels.shape == (info['height'], info['width'])
        assert (labels[~masks.any(0)] == BACKGROUND).all()
        for label, mask, box in zip(
            results['gt_bboxes_labels'], masks, results['gt_bboxes'].tensor, strict=True
        ):
            assert (labels[mask] == label).all()
            rows, columns = np.nonzero(mask)
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert box.tolist() == [float(edge) for edge in edges]


def metric_of(annotations):
    metric = METRICS.build(
        dict(
            type='mmgcvit.PanopticMetric',
            ann_file=str(annotations / 'panoptic_val2017.json'),
            seg_prefix=str(annotations / 'panoptic_val2017'),
        )
    )
    metric.dataset_meta = dict(classes=CLASSES)
    return metric


def predictions(annotations, change=lambda labels: labels):
    """Yield perfect predictions as mmdet's models return them, changed by a function."""
    content = json.loads((annotations / 'panoptic_val2017.json').read_text())
    for annotation in content['annotations']:
        ids = ids_of(annotations, annotation['file_name'])
        found = np.full(ids.shape, len(CLASSES))
        for number, each in enumerate(annotation['segments_info']):
            label = each['category_id'] - 1
            found[ids == each['id']] = label + (1000 * number if label != BACKGROUND else 0)
        maps = torch.from_numpy(change(found))[None]
        yield dict(img_id=annotation['image_id'], pred_panoptic_seg=dict(sem_seg=maps))


def evaluated(annotations, change=lambda labels: labels):
    metric = metric_of(annotations)
    for sample in predictions(annotations, change):
        metric.process(None, [sample])
    return metric.evaluate(size=4)


def test_perfect_predictions_have_100_percent(annotations):
    names = [f'{name}{part}' for part in ('', '_th', '_st') for name in ('PQ', 'SQ', 'RQ')]
    assert evaluated(annotations) == {f'coco_panoptic/{name}': 100.0 for name in names}


def test_stuff_without_things(annotations):
    def only_background(labels):
        return np.full_like(labels, BACKGROUND)

    metrics = evaluated(annotations, only_background)
    assert metrics['coco_panoptic/PQ_th'] == metrics['coco_panoptic/SQ_th'] == 0
    # the background matches, with the share of the image that it covers as IoU
    shares = [
        np.mean(sample['pred_panoptic_seg']['sem_seg'].numpy() == BACKGROUND)
        for sample in predictions(annotations)
    ]
    assert min(shares) > 0.5
    assert metrics['coco_panoptic/PQ_st'] == pytest.approx(100 * np.mean(shares))
    assert metrics['coco_panoptic/RQ_st'] == 100
    assert metrics['coco_panoptic/PQ'] == pytest.approx(metrics['coco_panoptic/PQ_st'] / 4)


def test_pixels_without_a_prediction(annotations):
    def nothing(labels):
        return np.full_like(labels, len(CLASSES))

    assert set(evaluated(annotations, nothing).values()) == {0.0}


def test_means_are_over_the_classes_that_occur(annotations):
    sums = [
        [1.6, 0, 0, 0.9],
        [2, 0, 0, 1],
        [1, 0, 0, 0],
        [1, 0, 1, 0],
    ]  # IoU, matched, false, missed
    metrics = metric_of(annotations).compute_metrics([np.array(sums), np.zeros((4, 4))])
    first = 1.6 / (2 + 1 / 2 + 1 / 2)
    assert metrics['PQ'] == pytest.approx(100 * (first + 0 + 0.9) / 3)
    assert metrics['PQ_th'] == pytest.approx(100 * first / 2)
    assert (metrics['SQ_th'], metrics['RQ_th']) == pytest.approx((40, 100 / 3))
    assert (metrics['PQ_st'], metrics['SQ_st'], metrics['RQ_st']) == pytest.approx((90, 90, 100))


def as_defined(truth, segments, predicted, labels, classes):
    """The definition, segment by segment."""
    iou, matched, false, missed = np.zeros((4, classes))
    void = ~np.isin(truth, [number for number, (label, _) in segments.items() if label != VOID])
    taken = set()
    for number, (label, crowd) in segments.items():
        region = truth == number
        if label == VOID or crowd:
            continue
        for other, other_label in labels.items():
            own = predicted == other
            union = (region | own) & ~(void & ~region)
            value = (region & own).sum() / union.sum()
            if other_label == label and value > 0.5:
                iou[label] += value
                matched[label] += 1
                taken.add(other)
                break
        else:
            missed[label] += 1
    for other, label in labels.items():
        own = predicted == other
        crowds = [n for n, (of, crowd) in segments.items() if crowd and of == label]
        excused = (own & (void | np.isin(truth, crowds))).sum() > own.sum() / 2
        if label != VOID and other not in taken and not excused:
            false[label] += 1
    return np.stack([iou, matched, false, missed])


@pytest.mark.parametrize('seed', range(20))
def test_segments_match_as_defined(seed):
    """Random maps of blocks, with crowds, unlabelled pixels and unpredicted ones."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 6, (3, 3)).repeat(4, 0).repeat(4, 1)
    predicted = np.where(random.random(truth.shape) < 0.25, 9, truth + 10)
    predicted[:4] = random.integers(10, 16)
    segments = {
        number: (int(random.integers(VOID, 3)), bool(random.random() < 0.3))
        for number in range(1, 6)
    }
    segments = {
        number: (label, crowd and label != VOID) for number, (label, crowd) in segments.items()
    }
    labels = {
        int(number): segments.get(int(number) - 10, (int(random.integers(VOID, 3)),))[0]
        for number in np.unique(predicted)
    }
    found = compare(truth, segments, predicted, labels, 3)
    assert found == pytest.approx(as_defined(truth, segments, predicted, labels, 3))


def test_segments_without_pixels_are_missed_as_in_panopticapi():
    """A crowd and a segment of another class do not count."""
    truth = np.array([[1, 1], [0, 2]])
    segments = {1: (0, False), 2: (1, False), 3: (1, False), 4: (1, True), 5: (VOID, False)}
    found = compare(truth, segments, truth, {0: VOID, 1: 0, 2: 1}, 2)
    assert found.tolist() == [[1, 1], [1, 1], [0, 0], [0, 1]]
