"""Detectors and segmentors with our operators train for two steps and predict."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmgcvit.engine import load_config
from mmgcvit.engine.adaptations import adapt_cpu
from mmgcvit.engine.device import Machine

DATA = Path(__file__).parents[1] / 'data'

CHANNELS = [8, 16, 32, 64]
BACKBONE = dict(
    _delete_=True,
    type='mmgcvit.GCViT',
    arch=dict(
        embed_dims=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        mlp_ratio=2,
        layer_scale_init_value=None,
    ),
    window_size=8,
)
FPN = dict(backbone=BACKBONE, neck=dict(in_channels=CHANNELS))
PROPOSALS = dict(max_per_img=50)
TWO_STAGES = dict(
    FPN, train_cfg=dict(rpn_proposal=PROPOSALS), test_cfg=dict(rpn=PROPOSALS, rcnn=PROPOSALS)
)
DETECTORS = {
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': TWO_STAGES,
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': TWO_STAGES,
    'retinanet/retinanet_r50_fpn_1x_coco.py': FPN,
    # uses deformable convolution
    'vfnet/vfnet_r50_fpn_1x_coco.py': FPN,
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': dict(
        backbone=dict(BACKBONE, out_indices=(1, 2, 3)),
        neck=dict(in_channels=CHANNELS[1:]),
        num_queries=20,
        encoder=dict(num_layers=1),
        decoder=dict(num_layers=2),
    ),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': dict(
        data_preprocessor=dict(batch_augments=[]),  # no padding to 1024 pixels
        backbone=BACKBONE,
        panoptic_head=dict(
            in_channels=CHANNELS,
            num_queries=20,
            pixel_decoder=dict(encoder=dict(num_layers=1)),
            transformer_decoder=dict(num_layers=2),
        ),
        train_cfg=dict(num_points=500),
        test_cfg=dict(max_per_image=20),
    ),
}


def train_and_predict(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    wrapper = OptimWrapper(optimizer)
    losses = [model.train_step(batch(), wrapper)['loss'].item() for _ in range(2)]
    assert torch.tensor(losses).isfinite().all()
    assert losses[0] != losses[1]
    with torch.no_grad():
        return model.eval().test_step(batch())


@pytest.mark.slow
@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.partition('/')[0])
def test_detectors(tmp_path, path):
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    init_default_scope('mmdet')
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = 'mmdet::{path}'\nmodel = {DETECTORS[path]}\n")
    model = MODELS.build(Config.fromfile(config).model)
    model.init_weights()
    has_masks = 'mask' in path

    def batch():
        data = demo_mm_inputs(
            2,
            image_shapes=[(3, 96, 128), (3, 120, 100)],
            num_items=[2, 1],
            num_classes=3,
            with_mask=has_masks,
        )
        for sample in data['data_samples']:
            sample.set_metainfo(dict(batch_input_shape=(128, 128)))
        return data

    for sample in train_and_predict(model, batch):
        found = sample.pred_instances
        assert len(found.labels) == len(found.scores) == len(found.bboxes)
        assert found.scores.isfinite().all()
        assert ('masks' in found) == has_masks


@pytest.mark.slow
def test_a_segmentor(monkeypatch):
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    init_default_scope('mmseg')
    monkeypatch.syspath_prepend(str(DATA / 'scripts'))
    cfg = load_config(DATA / 'configs' / 'upernet_tiny.py')
    adapt_cpu(cfg, Machine('cpu'))  # replaces SyncBN
    model = MODELS.build(cfg.model)

    def batch():
        labels = torch.randint(0, 150, (2, 1, 96, 96))
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
        for sample in samples:
            sample.set_metainfo(dict(img_shape=(96, 96), ori_shape=(96, 96), pad_shape=(96, 96)))
        return dict(inputs=list(torch.randint(0, 256, (2, 3, 96, 96))), data_samples=samples)

    for sample in train_and_predict(model, batch):
        assert sample.pred_sem_seg.data.shape == (1, 96, 96)
