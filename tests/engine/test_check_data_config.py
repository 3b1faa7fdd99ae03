"""The same thing said differently in two places of a config."""

import copy
import importlib
from pathlib import Path

import pytest
from checked import apply_remedy, detection, names, segmentation, texts
from mmengine.config import Config

from mmgcvit.engine import check_data, load_config
from mmgcvit.engine.check_data.checking import name_of
from mmgcvit.engine.check_data.config import CONFIG


def mask2former(shapes):
    cfg = detection(shapes)
    cfg.merge_from_dict(dict(default_hooks=dict(checkpoint=dict(save_best='coco/segm_mAP'))))
    model = dict(
        type='Mask2Former',
        panoptic_head=dict(
            type='Mask2FormerHead',
            num_things_classes=3,
            num_stuff_classes=0,
            loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * 3 + [0.1]),
        ),
        panoptic_fusion_head=dict(
            type='MaskFormerFusionHead', num_things_classes=3, num_stuff_classes=0
        ),
    )
    cfg._cfg_dict['model'] = Config(dict(model=model)).model
    return cfg


# place → value → what is said of it
HEADS = [
    (detection, 'model.roi_head.bbox_head.2.num_classes', 8, 'bbox_head.2.num_classes is 8, but'),
    (detection, 'model.roi_head.mask_head.num_classes', 2, 'mask_head.num_classes is 2, but'),
    (segmentation, 'model.decode_head.num_classes', 21, 'decode_head.num_classes is 21, but'),
    (
        mask2former,
        'model.panoptic_head.num_things_classes',
        5,
        'panoptic_head.num_things_classes is 5 and num_stuff_classes is 0, but the train dataset '
        'has 3 classes',
    ),
    (mask2former, 'model.panoptic_fusion_head.num_stuff_classes', 1, 'num_stuff_classes is 1, but'),
]


@pytest.mark.parametrize(('make', 'place', 'value', 'message'), HEADS)
def test_every_head_has_the_classes_of_the_data(shapes, make, place, value, message):
    cfg = make(shapes)
    assert texts(check_data(cfg)) == []
    cfg.merge_from_dict({place: value})
    (text,) = texts(check_data(cfg))
    assert message in text
    apply_remedy(cfg, text)
    assert texts(check_data(cfg)) == []


def test_the_default_number_of_classes_is_compared_too(shapes):
    cfg = detection(shapes)
    del cfg.model.roi_head.bbox_head[1]['num_classes']
    (text,) = texts(check_data(cfg))
    assert 'bbox_head.1.num_classes is 80 by default, but the train dataset has 3' in text
    cfg = mask2former(shapes)
    del cfg.model.panoptic_fusion_head['num_stuff_classes']
    assert 'num_stuff_classes is 53, but' in texts(check_data(cfg))[0]


@pytest.mark.parametrize(
    ('make', 'place', 'number', 'wanted'),
    [
        (mask2former, 'model.panoptic_head.loss_cls.class_weight', 81, '4 (the last one is for'),
        (mask2former, 'model.panoptic_head.loss_cls.class_weight', 3, '4 (the last one is for'),
        (segmentation, 'model.decode_head.loss_decode.class_weight', 5, '4'),
    ],
)
def test_weights_of_classes_are_as_many_as_the_classes(shapes, make, place, number, wanted):
    cfg = make(shapes)
    cfg.merge_from_dict({place: [1.0] * number})
    (text,) = texts(check_data(cfg))
    assert f'{place} has {number} numbers' in text and f'it needs {wanted}' in text


def test_weights_of_heads_within_heads_are_compared_once(shapes):
    cfg = segmentation(shapes)
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0] * 7)
    head = dict(type='FCNHead', num_classes=4, loss_decode=loss)
    cfg.model.decode_head = dict(type='IterativeDecodeHead', kernel_generate_head=head)
    del cfg.model.decode_head.kernel_generate_head['type']
    cfg.model.decode_head.num_classes = 4
    (text,) = texts(check_data(cfg))
    assert 'decode_head.kernel_generate_head.loss_decode.class_weight has 7 numbers' in text
    assert texts(check_data(cfg, splits=('test',))) == []  # a test computes no losses


@pytest.mark.parametrize('number', [1, 80])
def test_heads_that_do_not_distinguish_classes_may_have_any_number(shapes, number):
    cfg = detection(shapes)
    cfg.model.roi_head.mask_head.update(class_agnostic=True, num_classes=number)
    assert texts(check_data(cfg)) == []
    cfg.model.roi_head.mask_head.class_agnostic = False
    assert 'mask_head.num_classes is' in texts(check_data(cfg))[0]
    cfg = segmentation(shapes)
    cfg.model.auxiliary_head.update(type='STDCHead', num_classes=number)
    assert texts(check_data(cfg)) == []


# one of each kind of head, and of each kind of dataset
PUBLISHED = {
    'mmdet': [
        *('atss/atss_r50_fpn_1x_coco', 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance'),
        *('detr/detr_r50_8xb2-150e_coco', 'dino/dino-5scale_swin-l_8xb2-12e_coco'),
        *('ddq/ddq-detr-4scale_r50_8xb2-12e_coco', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'),
        *('htc/htc_r50_fpn_1x_coco', 'lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1'),
        *('mask2former/mask2former_r50_8xb2-lsj-50e_coco', 'ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco'),
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic',
        'maskformer/maskformer_r50_ms-16xb1-75e_coco',
        *('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', 'rtmdet/rtmdet-ins_s_8xb32-300e_coco'),
        *('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco', 'solov2/solov2_r50_fpn_1x_coco'),
        'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
        *('yolact/yolact_r50_1xb8-55e_coco', 'yolof/yolof_r50-c5_8xb8-1x_coco'),
    ],
    'mmseg': [
        'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512',
        'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
        'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
        'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024',
        'san/san-vit-b16_coco-stuff164k-640x640',
        'segnext/segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512',
        'setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768',
        'stdc/stdc1_4xb12-80k_cityscapes-512x1024',
        'unet/unet-s5-d16_deeplabv3_4xb4-ce-1.0-dice-3.0-40k_stare-128x128',
        'vpd/vpd_sd_4xb8-25k_nyu-480x480',
    ],
}


@pytest.mark.parametrize(
    ('library', 'name'), [(library, name) for library in PUBLISHED for name in PUBLISHED[library]]
)
def test_published_configs_contradict_nothing(library, name):
    folder = Path(importlib.import_module(library).__file__).parent
    cfg = load_config(folder / '.mim' / 'configs' / f'{name}.py')
    assert not {name_of(check) for check in CONFIG} & set(names(check_data(cfg)))


def test_models_that_read_names_of_classes_have_no_number_of_them(shapes):
    cfg = detection(shapes)
    cfg.model.roi_head.mask_head.num_classes = 256
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.return_classes = True
    report = check_data(cfg)
    assert texts(report) == []
    assert 'not checked, the model reads the names of the classes, not their number' in report.notes


IGNORED = [
    'model.auxiliary_head.ignore_index',
    'model.decode_head.ignore_index',
    'model.data_preprocessor.seg_pad_val',
    'train_dataloader.dataset.ignore_index',
    'val_evaluator.ignore_index',
    'test_evaluator.ignore_index',
]


@pytest.mark.parametrize('place', IGNORED)
def test_the_ignored_label_is_the_same_everywhere(shapes, place):
    cfg = segmentation(shapes)
    cfg.merge_from_dict({place: 254})
    (text,) = texts(check_data(cfg))
    assert text.startswith(f'[ignore-index] {place} is 254, but ')
    assert all(f'{other} is 255' in text for other in IGNORED if other != place)
    apply_remedy(cfg, text)
    assert texts(check_data(cfg)) == []


def test_the_ignored_label_of_a_loss_is_that_of_its_head(shapes):
    cfg = segmentation(shapes)
    cfg.model.decode_head.loss_decode = [
        dict(type='CrossEntropyLoss', loss_name='loss_ce'),
        dict(type='DiceLoss', loss_name='loss_dice', ignore_index=0),
    ]
    (text,) = texts(check_data(cfg))
    assert 'model.decode_head.loss_decode.1.ignore_index is 0, but' in text


@pytest.mark.parametrize(
    ('transform', 'key', 'value'),
    [
        (dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio=0.75), 'ignore_index', 254),
        (dict(type='RandomRotate', prob=1.0, degree=5), 'seg_pad_val', 0),
        (dict(type='RandomMosaic', prob=1.0), 'seg_pad_val', 1),
        (dict(type='RandomCutOut', prob=1.0, n_holes=1, cutout_shape=(2, 2)), 'seg_fill_in', 3),
        (dict(type='Pad', size=(64, 64), pad_val=dict(img=0, seg=0)), 'pad_val.seg', 0),
        (dict(type='mmdet.Rotate', prob=1.0), 'seg_ignore_label', 250),
    ],
)
def test_transforms_fill_label_maps_with_the_ignored_label(shapes, transform, key, value):
    cfg = segmentation(shapes)
    cfg.val_dataloader.dataset.pipeline.insert(
        1, dict(type='RandomChoice', transforms=[[copy.deepcopy(transform)]])
    )
    place = f'val_dataloader.dataset.pipeline.1.transforms.0.0.{key}'
    cfg.merge_from_dict({place: value})
    (text,) = texts(check_data(cfg, splits=('train', 'val')))
    assert f'{place} is {value}' in text and 'model.decode_head.ignore_index is 255' in text
    if value < 4:  # a class cannot be what all places ignore
        assert f'{place}=255' in text and text.count('=255') == 1
    apply_remedy(cfg, text)
    assert texts(check_data(cfg, splits=('train', 'val'))) == []


def test_defaults_of_transforms_are_compared_with_the_ignored_label(shapes):
    cfg = segmentation(shapes)
    steps = cfg.train_dataloader.dataset.pipeline
    del steps[3]['cat_max_ratio']  # without it, RandomCrop ignores nothing
    steps += [
        dict(type='Pad', size=(64, 64), pad_val=7),
        dict(type='RandomRotate', prob=1.0, degree=5),
    ]
    cfg.train_dataloader.dataset.ignore_index = 254
    (text,) = texts(check_data(cfg))
    assert 'pipeline.7.pad_val.seg is 255' in text and 'pipeline.8.seg_pad_val is 255' in text
    assert '"train_dataloader.dataset.pipeline.7.pad_val={img: 7, seg: 254}"' in text
    assert 'pipeline.3' not in text


def test_zero_is_the_same_label_in_training_and_validation(shapes):
    cfg = segmentation(shapes)
    cfg.val_dataloader.dataset.reduce_zero_label = True
    found = [text for text in texts(check_data(cfg)) if text.startswith('[label-values]')]
    assert 'val_dataloader.dataset.reduce_zero_label is True' in found[0]


def test_masks_are_loaded_for_a_mask_head(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = False
    (text,) = texts(check_data(cfg))
    assert 'the model has a mask head, but train_dataloader.dataset.pipeline.1.with_mask is' in text
    apply_remedy(cfg, text)
    assert texts(check_data(cfg)) == []


def test_mask_ap_needs_a_mask_head(shapes):
    cfg = detection(shapes)
    cfg.model.roi_head.mask_head = None
    report = check_data(cfg)
    assert names(report) == ['mask-settings']
    assert 'val_evaluator.metric needs masks, but the model has no mask head' in texts(report)[0]
    apply_remedy(cfg, texts(report)[0])
    assert texts(check_data(cfg)) == []


def test_the_best_checkpoint_needs_its_metric(shapes):
    cfg = detection(shapes)
    cfg.val_evaluator.metric = 'bbox'
    (text,) = texts(check_data(cfg, splits=('train', 'val')))
    assert 'default_hooks.checkpoint.save_best is coco/segm_mAP, but no evaluator computes' in text
    apply_remedy(cfg, text)
    assert texts(check_data(cfg, splits=('train', 'val'))) == []


@pytest.mark.parametrize('settings', [dict(indices=2), dict(indices=[0, 2])])
def test_metrics_of_images_that_the_dataset_does_not_use_are_named(shapes, settings):
    cfg = detection(shapes)
    cfg.val_dataloader.dataset.update(settings)
    (problem,) = check_data(cfg).problems
    assert problem.text.startswith('[evaluator-files] val_evaluator evaluates all 3 images')
    assert 'uses 2 of them' in problem.text and 'annotation file of these 2' in problem.text
    assert not problem.stops
    cfg.val_dataloader.dataset.pop('indices')
    cfg.train_dataloader.dataset.update(settings)
    assert 'evaluator-files' not in names(check_data(cfg))


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        ('param_scheduler.1.milestones', '8, 11', "is '8, 11', but has to be list"),
        ('param_scheduler.1.milestones', [8, '11'], "milestones.1 is '11', but has to be int"),
        ('param_scheduler.0.by_epoch', 'False', "is 'False', but has to be bool"),
        ('default_hooks.checkpoint.save_last', 'no', "is 'no', but has to be bool"),
        ('default_hooks.logger.interval', '50', "is '50', but has to be int"),
    ],
)
def test_text_instead_of_numbers_lists_and_booleans_is_named(shapes, place, value, message):
    cfg = detection(shapes)
    cfg.param_scheduler[1] = dict(type='MultiStepLR', milestones=[8, 11])
    assert texts(check_data(cfg)) == []
    cfg.merge_from_dict({place: value})
    (text,) = texts(check_data(cfg))
    assert text.startswith(f'[quoted-values] {place}') and message in text
    assert texts(check_data(cfg, splits=('test',))) == []


def test_text_in_a_single_schedule_is_named(shapes):
    cfg = detection(shapes)
    cfg.param_scheduler = dict(type='StepLR', step_size=3, gamma='0.1')
    (text,) = texts(check_data(cfg))
    assert "param_scheduler.gamma is '0.1', but has to be float" in text
