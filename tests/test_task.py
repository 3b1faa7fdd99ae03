"""Which task a config's model is for."""

from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
from mmengine.config import Config

from mmgcvit.engine import load_config
from mmgcvit.errors import UserError
from mmgcvit.task import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    inner_model,
    require_task,
    task_of,
)


def config_of(library, name):
    return load_config(Path(library.__file__).parent / '.mim' / 'configs' / name)


@pytest.mark.parametrize(
    ('library', 'name', 'task'),
    [
        (mmdet, 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', DETECTION),
        (mmdet, 'detr/detr_r50_8xb2-150e_coco.py', DETECTION),
        (mmdet, 'solo/solo_r50_fpn_1x_coco.py', DETECTION),
        (mmdet, 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', DETECTION),
        (mmdet, 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
         DETECTION),
        (mmseg, 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', SEGMENTATION),
        (mmseg, 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', SEGMENTATION),
        (mmpretrain, 'vision_transformer/vit-base-p16_64xb64_in1k.py', CLASSIFICATION),
    ],
)  # fmt: skip
def test_models_of_the_three_libraries(library, name, task):
    assert require_task(config_of(library, name)) is task


def test_wrapped_models():
    cfg = config_of(mmdet, 'retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model = dict(type='DetTTAModel', module=cfg.model)
    assert task_of(cfg) is DETECTION and inner_model(cfg).type == 'RetinaNet'
    cfg.model = dict(type='OfMyOwn', detector=dict(type='mmseg.EncoderDecoder'))
    assert task_of(cfg) is SEGMENTATION


@pytest.mark.parametrize(
    ('imported', 'task'),
    [
        ('mmdet.models import DINO', DETECTION),
        ('mmseg.models import EncoderDecoder', SEGMENTATION),
        ('mmpretrain.models import ImageClassifier', CLASSIFICATION),
    ],
)
def test_classes_instead_of_names(tmp_path, imported, task):
    name = imported.rpartition(' ')[2]
    (tmp_path / 'config.py').write_text(
        f'from {imported}\ndefault_scope = None\nmodel = dict(type={name})\n'
    )
    assert task_of(load_config(tmp_path / 'config.py')) is task


def test_heads_decide_for_models_of_other_libraries():
    for head, task in (('bbox_head', DETECTION), ('decode_head', SEGMENTATION)):
        assert task_of(Config(dict(model={'type': 'OfMyOwn', head: dict()}))) is task
    assert task_of(Config(dict(model=dict(type='OfMyOwn', backbone=dict())))) is None
    assert task_of(Config(dict())) is None


def test_a_model_of_no_task_is_an_error(tmp_path):
    (tmp_path / 'config.py').write_text("model = dict(type='mmgcvit.GCViT')\n")
    with pytest.raises(UserError, match=r'model of .*config\.py has none of .*decode_head'):
        require_task(load_config(tmp_path / 'config.py'))
