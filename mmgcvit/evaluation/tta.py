"""Test-time augmentation: several views of each image, whose predictions are merged."""

import copy

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS

from ..engine.device import Machine
from ..engine.wrappers import dataset_configs
from ..errors import UserError
from ..registry import class_of
from ..task import CLASSIFICATION, SEGMENTATION, task_of
from .metrics import evaluators

# names with a scope, because a config may have no default scope; mmdet registers DetTTAModel in
# mmengine's registry, without a scope
DETECTOR_TTA = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
CLASSIFIER_TTA = dict(type='mmpretrain.AverageClsScoreTTA')
FLIPS = dict(
    type='TestTimeAug',
    transforms=[
        # the original image first: the result keeps the ground truth of the first view
        [dict(type='mmdet.RandomFlip', prob=0.0), dict(type='mmdet.RandomFlip', prob=1.0)],
        [
            dict(
                type='mmdet.PackDetInputs',
                meta_keys=(
                    *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                    *('flip', 'flip_direction'),
                ),
            )
        ],
    ],
)


def adapt_tta(cfg: Config, machine: Machine) -> None:
    """Test on several views of each image and merge their predictions (``--tta``).

    The config's ``tta_pipeline`` defines the views. Without it, a detector is tested on the image
    and its mirror image. mmdet merges only boxes, so a detector's mask head is removed.

    Raises:
        UserError: If a segmentor's or classifier's config does not define the views, or a detector
            has masks that cannot be removed.
    """
    task = task_of(cfg)
    if task is SEGMENTATION:
        if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
            raise UserError(
                '--tta needs tta_model and tta_pipeline in a segmentation config: inherit them '
                'from mmseg::_base_/default_runtime.py and one of mmseg::_base_/datasets'
            )
    elif task is CLASSIFICATION:
        if not cfg.get('tta_pipeline'):
            raise UserError(
                '--tta needs tta_pipeline in a classification config: add the test pipeline with '
                "dict(type='TestTimeAug', transforms=[...]) as its last step, or test without --tta"
            )
        cfg.tta_model = cfg.get('tta_model') or CLASSIFIER_TTA
    else:
        _remove_masks(cfg)
        cfg.tta_model = cfg.get('tta_model') or DETECTOR_TTA
        cfg.tta_pipeline = cfg.get('tta_pipeline') or [*test_datasets(cfg)[0].pipeline[:-1], FLIPS]
    model = copy.copy(cfg.tta_model)  # ** would resolve a type that is a class
    model.module = cfg.model
    cfg.model = model
    for dataset in test_datasets(cfg):
        dataset.pipeline = cfg.tta_pipeline


def test_datasets(cfg: Config) -> list[ConfigDict]:
    """Return the configs of the test datasets, without wrappers."""
    found = dataset_configs(cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    return [dataset for _, dataset in found]


def _remove_masks(cfg: Config) -> None:
    wants_masks = False
    for evaluator in evaluators(cfg):
        wanted = evaluator.get('metric', 'bbox')
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        if 'segm' in wanted:
            wants_masks = True
            evaluator['metric'] = [name for name in wanted if name != 'segm'] or ['bbox']
    roi_head = cfg.model.get('roi_head') or {}
    fuses_masks = cfg.model.get('panoptic_fusion_head') is not None
    if not fuses_masks and roi_head.pop('mask_head', None) is not None:
        roi_head.pop('mask_roi_extractor', None)
        print_log('--tta: mmdet merges only boxes, masks are skipped', logger='current')
    elif wants_masks or fuses_masks:
        cls = class_of(cfg.model, MODELS, cfg.get('default_scope'))
        raise UserError(
            f'--tta: mmdet merges only boxes, and {getattr(cls, "__name__", cfg.model.type)} has '
            'no separate mask head that could be removed: test without --tta'
        )
