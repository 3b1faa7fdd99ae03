"""Tiles of large images, with models whose predictions are known, and with small networks."""

import argparse
import functools
from types import SimpleNamespace

import cv2
import numpy as np
import pycocotools.mask as coco
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import DumpDetResults, LVISMetric
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.structures import SegDataSample
from torch import nn

from mmgcvit.engine.device import Machine
from mmgcvit.errors import UserError
from mmgcvit.evaluation import (
    adapt_tiles,
    add_tile_options,
    keep_polygons,
    tile_options,
    tiles,
)
from mmgcvit.evaluation.placed_masks import PlacedMasks
from mmgcvit.evaluation.tile_options import TileOptions
from mmgcvit.evaluation.tiles import TiledModel, Tiles, keep, spans

CPU = Machine('cpu')


@pytest.mark.parametrize(
    ('length', 'size', 'overlap', 'expected'),
    [
        (100, 40, 10, [(0, 40, 0, 35), (30, 70, 35, 65), (60, 100, 65, 100)]),
        # the last tile ends at the border of the image
        (90, 40, 10, [(0, 40, 0, 35), (30, 70, 35, 60), (50, 90, 60, 90)]),
        (80, 40, 0, [(0, 40, 0, 40), (40, 80, 40, 80)]),
        (40, 40, 10, [(0, 40, 0, 40)]),
        (7, 40, 10, [(0, 7, 0, 7)]),
    ],
)
def test_tiles_cover_an_axis_and_divide_their_overlaps(length, size, overlap, expected):
    found = spans(length, size, overlap)
    assert [(s.start, s.stop, s.core_start, s.core_stop) for s in found] == expected


@pytest.mark.parametrize(('top', 'left'), [(0, 0), (5, 9), (15, 12)])
def test_masks_of_a_tile_are_those_of_the_image(top, left):
    shape, masks = (25, 20), np.random.RandomState(0).rand(4, 10, 8) > 0.4
    masks[1], masks[2] = True, False
    full = np.zeros((4, *shape), np.uint8)
    full[:, top : top + 10, left : left + 8] = masks
    placed = PlacedMasks.at(masks, shape, top, left)
    assert placed.masks == [coco.encode(np.asfortranarray(mask)) for mask in full]
    np.testing.assert_array_equal(placed.to_ndarray(), full)
    both = InstanceData.cat([InstanceData(masks=placed), InstanceData(masks=placed[1:2])])
    np.testing.assert_array_equal(both[torch.tensor([4, 0])].masks.to_ndarray(), full[[1, 0]])


def test_masks_that_go_on_in_the_next_column_are_one_run():
    placed = PlacedMasks.at(np.ones((1, 25, 3), bool), (25, 20), 0, 4)
    expected = np.zeros((25, 20), np.uint8, order='F')
    expected[:, 4:7] = 1
    assert placed[0] == coco.encode(expected)


class Blobs(nn.Module):
    """Finds the connected regions of images: class 0 if they are squares, otherwise class 1."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def test_step(self, data):
        self.batches.append(len(data['inputs']))
        return list(map(self.find, data['inputs'], data['data_samples']))

    def find(self, image, sample):
        number, regions, stats, _ = cv2.connectedComponentsWithStats(image[0].numpy())
        boxes = torch.from_numpy(stats[1:, :4]).float().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample.pred_instances = InstanceData(
            bboxes=boxes,
            scores=torch.linspace(0.9, 0.1, number - 1),
            labels=torch.from_numpy(stats[1:, 2] != stats[1:, 3]).long(),
            masks=torch.from_numpy(np.stack([regions == i for i in range(1, number)]))
            if number > 1
            else torch.zeros((0, *image.shape[1:]), dtype=torch.bool),
        )
        return sample


class Brightness(nn.Module):
    """Labels pixels with their brightness, and those near the border of an input with 200."""

    border = 0

    def test_step(self, data):
        return list(map(self.label, data['inputs'], data['data_samples']))

    def label(self, image, sample):
        labels = image[:1].long()
        inside = torch.zeros_like(labels, dtype=torch.bool)
        inside[:, self.border : -self.border or None, self.border : -self.border or None] = True
        sample.pred_sem_seg = PixelData(data=labels.where(inside, torch.tensor(200)))
        return sample


def predict(model, image, size, overlap, batch_size=1):
    pack, sample = PackDetInputs(meta_keys=('ori_shape',)), DetDataSample()
    if isinstance(model, Brightness):
        pack, sample = PackSegInputs(), SegDataSample()
    tiles = Tiles(dict(img=image), size, overlap, Compose([pack]))
    data = dict(inputs=[tiles], data_samples=[sample])
    (found,) = TiledModel(model, batch_size).test_step(data)
    return found


def squares(shape, places, edge):
    image = np.zeros((*shape, 3), np.uint8)
    for top, left in places:
        image[top : top + edge, left : left + edge] = 255
    return image


def boxes_of(found):
    return sorted(map(tuple, found.pred_instances.bboxes.int().tolist()))


PLACES = [(0, 0), (0, 52), (41, 90), (70, 20), (95, 97), (45, 57), (130, 0), (130, 130)]


@pytest.mark.parametrize('size', [60, 64, 97, 200])
def test_objects_that_fit_into_the_overlap_are_found_once_and_at_their_place(size):
    image = squares((150, 150), PLACES, edge=20)
    found = predict(Blobs(), image, size, overlap=24)
    whole = predict(Blobs(), image, 1000, overlap=24)
    expected = sorted((left, top, left + 20, top + 20) for top, left in PLACES)
    assert boxes_of(found) == boxes_of(whole) == expected
    # parts of squares have another class
    assert found.pred_instances.labels.tolist() == [0] * len(PLACES)
    for box, mask in zip(
        found.pred_instances.bboxes.int(), found.pred_instances.masks, strict=True
    ):
        left, top = box[:2].tolist()
        np.testing.assert_array_equal(mask, squares((150, 150), [(top, left)], 20)[..., 0] > 0)


def test_objects_that_are_larger_than_the_overlap_remain_in_parts():
    image = squares((40, 160), [(0, 50)], edge=40)
    assert boxes_of(predict(Blobs(), image, 60, overlap=10)) == [(50, 0, 60, 40), (50, 0, 90, 40)]


def test_boxes_of_one_tile_do_not_suppress_each_other():
    class Twice(Blobs):
        def find(self, image, sample):
            found = super().find(image, sample).pred_instances
            sample.pred_instances = InstanceData.cat([found, found.clone()])
            return sample

    image = squares((40, 100), [(5, 5), (10, 75)], edge=20)
    found = boxes_of(predict(Twice(), image, 60, overlap=20))
    assert found == [(5, 5, 25, 25)] * 2 + [(75, 10, 95, 30)] * 2


@pytest.mark.parametrize(('score', 'kept'), [(0.02, [True, True]), (0.6, [False, True])])
def test_boxes_with_low_scores_do_not_suppress_parts_of_other_classes(score, kept):
    boxes = InstanceData(
        bboxes=torch.tensor([[70.0, 10, 100, 40], [72, 9, 102, 41]]),
        scores=torch.tensor([0.98, score]),
        labels=torch.tensor([0, 1]),
    )
    found = keep(boxes, tile=torch.tensor([0, 1]), cut=torch.tensor([True, False]))
    assert found.tolist() == kept


def test_only_a_batch_of_tiles_is_in_memory():
    model, made = Blobs(), []
    tiles = Tiles(
        dict(img=squares((150, 150), PLACES, 20)),
        *(60, 20),
        lambda results: made.append(sum(model.batches)) or PackDetInputs(meta_keys=())(results),
    )
    TiledModel(model, batch_size=5).test_step(dict(inputs=[tiles], data_samples=[DetDataSample()]))
    assert model.batches == [5, 5, 5, 1]
    assert made == [0] * 5 + [5] * 5 + [10] * 5 + [15]


def test_an_image_without_objects_has_no_instances():
    found = predict(Blobs(), np.zeros((90, 90, 3), np.uint8), 40, overlap=10).pred_instances
    assert len(found) == 0 and found.masks.to_ndarray().shape == (0, 90, 90)


def test_label_maps_are_stitched_from_the_middles_of_tiles():
    image = np.random.RandomState(0).randint(0, 150, (90, 131, 1), np.uint8)
    model = Brightness()
    found = predict(model, image, 40, overlap=10).pred_sem_seg.data
    np.testing.assert_array_equal(found[0], image[..., 0])
    model.border = 5  # half of the overlap
    found = predict(model, image, 40, overlap=10).pred_sem_seg.data[0]
    np.testing.assert_array_equal(found[5:-5, 5:-5], image[5:-5, 5:-5, 0])
    assert (found[:5] == 200).all() and (found[:, -5:] == 200).all()


def test_panoptic_maps_are_refused():
    class Panoptic(Blobs):
        def find(self, image, sample):
            sample.pred_panoptic_seg = PixelData(sem_seg=image[:1])
            return sample

    with pytest.raises(UserError, match='this model predicts pred_panoptic_seg: test without'):
        predict(Panoptic(), squares((50, 50), PLACES, 5), 40, 10)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_one_tile_gives_what_the_image_gives_without_tiles(models, task):
    trained = models.load(task)
    (expected,) = trained.model.test_step(trained.load_batch(models.images[0]))
    tiled = trained.in_tiles(TileOptions(size=2000))
    (found,) = tiled.model.test_step(tiled.load_batch(models.images[0]))
    assert found.ori_shape == expected.ori_shape
    if task == 'segmentation':
        assert found.pred_sem_seg.data.equal(expected.pred_sem_seg.data.to(torch.int16))
        return
    assert len(expected.pred_instances) > 10
    for name in ('bboxes', 'scores', 'labels'):
        assert found.pred_instances[name].equal(expected.pred_instances[name])
    np.testing.assert_array_equal(
        found.pred_instances.masks.to_ndarray(), expected.pred_instances.masks
    )


def test_boxes_are_suppressed_in_order_whatever_the_number_compared_at_once(monkeypatch):
    """The definition, box by box, for random boxes of which many suppress each other."""
    random = torch.Generator().manual_seed(0)
    number = 200
    corners = torch.rand(number, 2, generator=random) * 60
    sizes = 15 + torch.rand(number, 2, generator=random) * 15
    boxes = torch.cat((corners, corners + sizes), 1)
    labels, tile = torch.randint(3, (2, number), generator=random)
    scores, cut = torch.rand(number, generator=random), torch.rand(number, generator=random) < 0.3
    iou, inside = bbox_overlaps(boxes, boxes), bbox_overlaps(boxes, boxes, 'iof')
    expected = torch.ones(number, dtype=torch.bool)
    order = sorted(range(number), key=lambda i: (bool(cut[i]), -scores[i]))
    for place, i in enumerate(order):
        for j in order[place + 1 :] if expected[i] else ():
            same = labels[i] == labels[j]
            surer = not cut[i] and scores[i] >= scores[j] / 10
            part = cut[j] and (same or surer) and inside[j, i] > 0.5
            if tile[i] != tile[j] and ((same and iou[i, j] > 0.5) or part):
                expected[j] = False
    assert 50 < expected.sum() < 150
    instances = InstanceData(bboxes=boxes, labels=labels, scores=scores)
    for pairs in (1, 1000, tiles.PAIRS):
        monkeypatch.setattr(tiles, 'PAIRS', pairs)
        assert keep(instances, tile, cut).equal(expected)


def config(**model):
    load, resize = dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1333, 800))
    pipeline = [load, resize, dict(type='LoadAnnotations'), dict(type='PackDetInputs')]
    dataset = dict(type='RepeatDataset', dataset=dict(pipeline=pipeline))
    return Config(
        dict(
            model=dict(type='Detector', **model),
            test_dataloader=dict(batch_size=4, dataset=dataset),
            default_scope='mmdet',
        )
    )


def test_a_config_is_changed_behind_the_loading_of_the_image(log):
    cfg = config(bbox_head=dict())
    pipeline = cfg.test_dataloader.dataset.dataset.pipeline
    adapt_tiles(cfg, CPU, TileOptions())
    load, cut = cfg.test_dataloader.dataset.dataset.pipeline
    assert load.type == 'LoadImageFromFile'
    assert cut == dict(type='CutTiles', size=800, overlap=200, transforms=pipeline[1:])
    assert cfg.model.type == 'mmgcvit.TiledModel' and cfg.model.module.type == 'Detector'
    # batches are of tiles
    assert cfg.model.batch_size == 4 and cfg.test_dataloader.batch_size == 1
    assert '--tiles: 800x800 pixels, overlap 200' in log


def test_metrics_that_expect_a_tensor_of_masks(tmp_path):
    found = predict(Blobs(), squares((150, 150), PLACES, edge=20), 64, overlap=24).to_dict()
    masks = found['pred_instances']['masks'].masks
    found.update(img_id=1, ori_shape=(150, 150))
    dump = DumpDetResults(out_file_path=str(tmp_path / 'found.pkl'))
    dump.process(None, [found])
    assert dump.results[0]['pred_instances']['masks'] == masks
    found = predict(Blobs(), squares((150, 150), PLACES, edge=20), 64, overlap=24).to_dict()
    found.update(img_id=1, ori_shape=(150, 150))
    lvis = SimpleNamespace(_lvis_api=object(), results=[])  # the class needs the package lvis
    LVISMetric.process(lvis, None, [found])
    assert lvis.results[0][1]['masks'] == masks
    assert found['pred_instances']['masks'].cpu().numpy().astype(np.uint8).shape == (8, 150, 150)


def test_annotated_masks_stay_polygons():
    cfg = config(bbox_head=dict())
    keep_polygons(cfg)
    _, resize, annotations, pack = cfg.test_dataloader.dataset.dataset.pipeline
    assert annotations == dict(type='LoadAnnotations', poly2mask=False)
    assert 'poly2mask' not in resize and 'poly2mask' not in pack
    cfg = config(decode_head=dict())
    cfg.default_scope = 'mmseg'  # whose transform of this name has no such argument
    keep_polygons(cfg)
    assert cfg.test_dataloader.dataset.dataset.pipeline[2] == dict(type='LoadAnnotations')


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_tile_options(parser)
    return tile_options(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--tiles', '0'], '--tiles is 0 pixels: use at least 32'),
        (['--tiles', '64', '--tile-overlap', '64'], 'at least 0 and less than .* the tiles, 64'),
        (['--tiles', '64', '--tile-overlap', '-1'], '--tile-overlap is -1 pixels'),
        (['--tile-overlap', '9'], '--tile-overlap needs --tiles'),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        adapt_tiles(config(bbox_head=dict()), CPU, options(*arguments))


def test_configs_that_cannot_be_tested_in_tiles_are_refused():
    assert options() is None
    adapt = functools.partial(adapt_tiles, machine=CPU, options=options('--tiles'))
    with pytest.raises(UserError, match='this is the config of a classifier'):
        adapt(config(head=dict()))
    cfg = config(bbox_head=dict())
    del cfg.test_dataloader.dataset.dataset.pipeline[0]
    with pytest.raises(UserError, match='a transform that loads the image'):
        adapt(cfg)
    del cfg.test_dataloader.dataset.dataset.pipeline[0]
    with pytest.raises(UserError, match='--tiles needs a size, because'):
        adapt(cfg)
