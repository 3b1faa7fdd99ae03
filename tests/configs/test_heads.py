"""Configs of detectors that replace the backbone of mmdet's, with a very small backbone.

Their channels, sizes and headers are tested in test_configs.py.
"""

import ast
import copy
import re

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from nano import NANO
from test_configs import (
    HEADS,
    ROOT,
    backbone_of,
    few_proposals,
    method_and_size,
    published,
    taking_parts,
    test_norms_and_bias_tables_are_not_decayed,  # noqa: F401, it runs with the fixture of this file
)
from tiers import only_quick

from mmgcvit import GCViT
from mmgcvit.engine.options import walk
from mmgcvit.inference.model import _num_classes
from mmgcvit.task import DETECTION

SHAPES = ((64, 96), (64, 80))  # height and width of the images in a batch
# of layers, queries and boxes; a head is otherwise as in its config
MOST = dict(num_layers=3, num_queries=20, num_dn_queries=10, max_per_img=10, max_per_image=10)
# the sizes of a method differ in the backbone
TINY = {
    path.stem: path
    for path in HEADS
    # test_segmentation_heads.py has the others
    if path.parent.name == 'detection' and method_and_size(path)[1] == 't'
}


def shrink(cfg):
    """Return a copy of a config with a very small backbone, few boxes and small images."""
    cfg = copy.deepcopy(cfg)
    model = cfg.model
    parts = taking_parts(model)
    model.backbone.update(arch=dict(NANO), window_size=7, init_cfg=None)
    with torch.device('meta'):
        channels = GCViT(
            dict(NANO), out_indices=model.backbone.get('out_indices', (0, 1, 2, 3))
        ).out_channels
    for part in parts:
        part.in_channels = list(channels)
    few_proposals(model)
    for _, node in walk({'model': model}):
        for key, most in MOST.items() if isinstance(node, dict) else ():
            if isinstance(node.get(key), int):
                node[key] = min(node[key], most)
    for augmentation in model.data_preprocessor.get('batch_augments') or []:
        augmentation.size = (96, 96)
    return cfg


@pytest.fixture(scope='module', params=only_quick(TINY, ['atss_gcvit-t_fpn_1x_coco']))
def built(request):
    """A small config and its model."""
    cfg = shrink(published(TINY[request.param]))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    return cfg, model


def batch(shapes, objects=2):
    """Return a batch of noise with up to two rectangles per image, as a dataloader does."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    samples = []
    for number, (height, width) in enumerate(shapes):
        size = (height, width)
        meta = dict(img_id=number, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        boxes = torch.tensor([[10.0, 8.0, 40.0, 48.0], [44.0, 20.0, 76.0, 60.0]])[:objects]
        masks = torch.zeros(objects, *size, dtype=torch.uint8)
        labels = torch.full((1, *size), 90)  # stuff, if the model knows any
        for index, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
            masks[index, top:bottom, left:right] = 1
            labels[0, top:bottom, left:right] = index
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.arange(objects), masks=BitmapMasks(masks.numpy(), *size)
        )
        sample.gt_sem_seg = PixelData(sem_seg=labels)
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]
    return dict(inputs=images, data_samples=samples)


def test_every_parameter_learns(built):
    """Without a gradient for a parameter, DDP stops in the second iteration."""
    cfg, model = built
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    for objects in (2, 2, 0):
        data = model.data_preprocessor(batch(SHAPES, objects), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        assert torch.isfinite(loss) and loss > 0
        wrapper.backward(loss)
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [] or (objects == 0 and cfg.get('find_unused_parameters'))
        wrapper.step()
        wrapper.zero_grad()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_it_predicts(built):
    cfg, model = built
    model.eval()
    with torch.no_grad():
        (found,) = model.test_step(batch(SHAPES[:1]))
    if cfg.filename.endswith('panoptic.py') or 'panoptic-fpn' in cfg.filename:
        assert found.pred_panoptic_seg.sem_seg.shape == (1, *SHAPES[0])
        assert _num_classes(model, DETECTION) == 133  # its box head only knows things
    else:
        predicted = found.pred_instances
        assert predicted.bboxes.shape == (len(predicted.scores), 4)
        metrics = cfg.val_evaluator.metric
        assert ('masks' in predicted) == ('segm' in metrics)
        if 'masks' in predicted:
            assert predicted.masks.shape[1:] == SHAPES[0]


def test_learning_rates(built):
    """A tenth for the whole backbone in the recipes of DETR and its successors, else the same."""
    cfg, model = built
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    base = cfg.optim_wrapper.optimizer.lr
    rates = {
        id(parameter): group['lr'] / base
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    slow = ()
    if any(method in cfg.filename for method in ('detr', 'dino', 'mask2former')):
        slow = ('backbone.',)
    if 'deformable-detr' in cfg.filename:  # as in its paper
        slow += ('sampling_offsets', 'reference_points')
    for name, parameter in model.named_parameters():
        expected = 0.1 if any(key in name for key in slow) else 1
        assert rates[id(parameter)] == pytest.approx(expected), name


def rows_of_the_page():
    """Yield the cells of each row of the table in docs/other_heads.md, without its head."""
    page = (ROOT / 'docs/other_heads.md').read_text()
    table = re.search(r'\n\| head \|.*\n\|---.*\n((?:\|.*\n)+)', page)[1]
    for row in table.splitlines():
        yield [cell.strip() for cell in row.split('|')[1:-1]]


def linked(cell):
    return [ROOT / 'docs' / link for link in re.findall(r'\]\((\S+?)\)', cell)]


def test_the_page_lists_every_head():
    links = {path.resolve() for row in rows_of_the_page() for path in linked(row[-1])}
    assert {(ROOT / path).resolve() for path in HEADS} <= links


@pytest.mark.parametrize('row', [*rows_of_the_page()], ids=lambda row: row[0])
def test_the_page_agrees_with_the_configs(row):
    _, indices, channels, settings, rate, configs = row
    for path in linked(configs):
        path = path.resolve().relative_to(ROOT)
        cfg, backbone = published(path), backbone_of(path)
        assert backbone.out_indices == ast.literal_eval(indices.strip('`')), path
        found = [dict(walk(cfg.model))[name] for name in re.findall('`(.+?)`', channels)]
        found = found[0] if isinstance(found[0], list) else found
        assert found == list(backbone.out_channels), path
        for name, value in re.findall(r'`([\w.]+)=([^`]+)`', settings):
            assert dict(walk(cfg.model))[name] == ast.literal_eval(value), path
        keys = cfg.optim_wrapper.paramwise_cfg.get('custom_keys', {})
        assert (keys.get('backbone', {}).get('lr_mult') == 0.1) == (rate == 'a tenth'), path
