"""A training of a second or two for the tests of resuming: drawn images, every generator in use.

Processes of the tests import this through ``custom_imports``.
"""

import os
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

from mmgcvit import GCViT

ARCH = {
    'embed_dims': 8,
    'depths': (1, 1, 1, 1),
    'num_heads': (1, 2, 2, 4),
    'mlp_ratio': 2,
    'layer_scale_init_value': 0.5,
}


@DATASETS.register_module()
class TinyImages(Dataset):
    """Drawn images with random flips (Python), brightness (NumPy) and noise (torch)."""

    metainfo = {'classes': ('dark', 'bright')}  # noqa: RUF012

    def __init__(self, folder, augment, reads=None):
        self.paths = sorted(Path(folder).glob('*.jpg'))
        self.augment = augment
        self.reads = reads

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        if self.reads:
            with open(self.reads, 'a') as file:
                file.write(f'{index}\n')
        image = cv2.resize(cv2.imread(str(self.paths[index])), (64, 64)).astype(np.float32) / 255
        label = float(image.mean() > 0.5)
        if self.augment:
            time.sleep(0.02)  # for the tests to kill a training within an iteration
            if random.random() < 0.5:
                image = image[:, ::-1]
            image = image * np.random.uniform(0.7, 1.3)
            image = image + torch.randn(64, 64, 1).numpy() * 0.1
        image = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
        return {'image': torch.from_numpy(image), 'label': torch.tensor(label)}


@MODELS.register_module()
class TinyClassifier(BaseModel):
    """GC ViT with drop path, dropout and batch norm in front of one output."""

    def __init__(self, init_cfg=None, drop_path_rate=0.3, drop_rate=0.2, batch_norm=True):
        super().__init__()
        self.backbone = GCViT(
            ARCH, window_size=2, drop_path_rate=drop_path_rate, out_indices=(3,), init_cfg=init_cfg
        )
        self.norm = nn.BatchNorm2d(64) if batch_norm else nn.Identity()
        self.head = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(64, 1))

    def forward(self, image, label, mode='tensor'):
        logits = self.head(self.norm(self.backbone(image)[-1]).mean((2, 3)))[:, 0]
        if mode == 'loss':
            return {'loss': nn.functional.binary_cross_entropy_with_logits(logits, label)}
        return [{'cost': float(nn.functional.binary_cross_entropy_with_logits(logits, label))}]


@METRICS.register_module()
class TinyMetric(BaseMetric):
    """Mean of the loss; less is better."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return {'cost': sum(result['cost'] for result in results) / len(results)}


@METRICS.register_module()
class MeanScore(BaseMetric):
    """Mean score of all detections; unlike COCO's metrics, it exists without detections."""

    default_prefix = 'mean'

    def process(self, data_batch, data_samples):
        self.results += [sample['pred_instances']['scores'].tolist() for sample in data_samples]

    def compute_metrics(self, results):
        scores = [score for some in results for score in some]
        return {'score': sum(scores) / max(len(scores), 1)}


@HOOKS.register_module()
class Hold(Hook):
    """Holds a training that is to be killed, however late the kill comes on a busy machine."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Wait to be killed where the environment's ``HOLD_AT`` iterations are done."""
        if runner.iter >= float(os.environ.get('HOLD_AT', 'inf')):
            time.sleep(300)
            raise TimeoutError('nobody killed this training')  # as pytest itself was killed


def config(images, work_dir, loop, workers, **settings):
    """Write the config of a training of 12 iterations, 4 an epoch or a checkpoint; return it."""
    by_epoch = loop == 'epoch'
    loops = {
        'epoch': "dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)",
        'iter': "dict(type='IterBasedTrainLoop', max_iters=12, val_interval=3)",
    }
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    text = f"""
custom_imports = dict(imports=['tiny_training'])
default_scope = 'mmengine'
model = dict(type='TinyClassifier')
train_dataloader = dict(
    dataset=dict(type='TinyImages', folder={str(images)!r}, augment=True),
    sampler=dict(type={sampler!r}, shuffle=True),
    collate_fn=dict(type='default_collate'),
    batch_size=3,
    num_workers={workers},
    persistent_workers={workers > 0},
)
val_dataloader = dict(
    dataset=dict(type='TinyImages', folder={str(images)!r}, augment=False),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    batch_size=4,
    num_workers={workers},
    persistent_workers={workers > 0},
)
train_cfg = {loops[loop]}
val_cfg = dict()
val_evaluator = dict(type='TinyMetric')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=12, eta_min=1e-4)]
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch={by_epoch}, interval={1 if by_epoch else 4},
                    max_keep_ckpts=2, save_best='cost', rule='less'),
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch={by_epoch}),
)
custom_hooks = [dict(type='EMAHook', momentum=0.2), dict(type='Hold')]
log_processor = dict(by_epoch={by_epoch})
randomness = dict(seed=3)
work_dir = {str(work_dir)!r}
"""
    for name, value in settings.items():
        text += f'{name} = {value!r}\n'
    path = Path(work_dir).with_suffix('.py')
    path.write_text(text)
    return path
