"""What ``tools/test.py`` adds to a config's evaluation: views to merge, predictions to keep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log

from ..errors import UserError
from ..registry import METRICS
from ..task import SEGMENTATION, task_of

DETECTOR_TTA = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
)
FLIPS = dict(
    type='TestTimeAug',
    transforms=[
        # the image itself first: what is merged keeps the ground truth of the first view
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [
            dict(
                type='PackDetInputs',
                meta_keys=(
                    *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                    *('flip', 'flip_direction'),
                ),
            )
        ],
    ],
)


def merge_views(cfg: Config) -> None:
    """Make a config test on several views of each image and merge what is found in them.

    The views are those of the config's ``tta_pipeline``; a detector's config without one gets the
    image and its mirror image. mmdet merges boxes only: a detector's mask head is left out.

    Raises:
        UserError: The config says nothing of views, or the detector has masks that cannot be left
            out.
    """
    if task_of(cfg) is SEGMENTATION:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise UserError(
                '--tta needs tta_model and tta_pipeline in a segmentation config: inherit them '
                'from mmseg::_base_/default_runtime.py and one of mmseg::_base_/datasets'
            )
    else:
        _leave_masks_out(cfg)
        cfg.setdefault('tta_model', DETECTOR_TTA)
        cfg.setdefault('tta_pipeline', [*_pipeline(cfg)[:-1], FLIPS])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    _test_dataset(cfg).pipeline = cfg.tta_pipeline


def _test_dataset(cfg: Config) -> ConfigDict:
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:  # wrapped, as by RepeatDataset
        dataset = dataset.dataset
    return dataset


def _pipeline(cfg: Config) -> list[dict]:
    return list(_test_dataset(cfg).pipeline)


def _leave_masks_out(cfg: Config) -> None:
    wants_masks = False
    for evaluator in _evaluators(cfg):
        wanted = evaluator.get('metric', 'bbox')
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        if 'segm' in wanted:
            wants_masks = True
            evaluator['metric'] = [name for name in wanted if name != 'segm'] or ['bbox']
    roi_head = cfg.model.get('roi_head') or {}
    if roi_head.pop('mask_head', None) is not None:
        roi_head.pop('mask_roi_extractor', None)
        print_log('--tta: mmdet merges boxes only, masks are left out', logger='current')
    elif wants_masks:
        raise UserError(
            f'--tta: mmdet merges boxes only, and {cfg.model.type} has no mask head of its own to '
            'leave out: test it without --tta'
        )


def _evaluators(cfg: Config) -> Sequence[dict]:
    evaluators = cfg.test_evaluator
    return evaluators if isinstance(evaluators, list | tuple) else [evaluators]


def dump_predictions(cfg: Config, path: str) -> None:
    """Make a config's test write every prediction to a pickle file.

    Of a detector these are the fields of its data samples, masks as RLE; of a segmentor the label
    maps, as its scores of every class and pixel would fill a disk.
    """
    if Path(path).suffix not in ('.pkl', '.pickle'):
        raise UserError(f'--out writes a pickle file: end its name in .pkl, got {path}')
    kind = 'mmgcvit.DumpLabelMaps' if task_of(cfg) is SEGMENTATION else 'DumpDetResults'
    cfg.test_evaluator = [*_evaluators(cfg), dict(type=kind, out_file_path=path)]


@METRICS.register_module()
class DumpLabelMaps(DumpResults):
    """Writes ``img_path`` and ``pred_sem_seg``, an int16 array (H, W), of each image."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            labels = sample['pred_sem_seg']['data'].squeeze(0).to('cpu', torch.int16).numpy()
            self.results.append({'img_path': sample['img_path'], 'pred_sem_seg': labels})
