"""The same thing said differently in two places of a config."""

import pytest
from checked import apply_remedy, detection, names, segmentation, texts
from mmengine.config import Config

from mmgcvit.engine import check_data


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
