"""A model of two layers and a training of it, of which iterations can be made to go wrong."""

import itertools
import math

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from mmgcvit.engine import build_runner

# mmengine names trainings by the second, and two of a name share logger and visualizer
_numbers = itertools.count()


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """Its loss is multiplied by what each image says: 1, or NaN."""

    def __init__(self, width=3, classes=2, batch_norm=False, offset=0.0):
        super().__init__()
        self.offset = offset
        self.backbone = nn.Linear(2, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.bbox_head = nn.Linear(width, classes)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        factor = torch.stack(inputs)
        # as an overflow within the network would do
        maps = self.norm(self.backbone(torch.ones(len(inputs), 2)) * factor[:, None])
        out = self.bbox_head(maps)
        return {'loss_cls': (out**2).mean() + self.offset} if mode == 'loss' else out


@DATASETS.register_module(force=True)
class ToyDataset(Dataset):
    def __init__(self, length, bad, classes=None):
        self.length, self.bad = length, set(bad)
        self.metainfo = dict(classes=classes) if classes else {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        sample = BaseDataElement(metainfo=dict(img_path=f'images/{index}.jpg', img_id=100 + index))
        value = math.nan if index in self.bad else 1.0
        return {'inputs': torch.tensor(value), 'data_samples': sample}


def toy_config(work_dir, bad=(), iterations=8, batch=1, hooks=(), model=None, **settings):
    """The config of a training; image k comes at place k."""
    return Config(
        dict(
            model={'type': 'ToyModel', **(model or {})},
            work_dir=str(work_dir),
            experiment_name=f'toy_{next(_numbers)}',
            train_dataloader=dict(
                batch_size=batch,
                num_workers=0,
                dataset=dict(type='ToyDataset', length=64, bad=list(bad)),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=False, max_iters=iterations),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1)),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=list(hooks),
            default_scope='mmengine',
            **settings,
        )
    )


def toy_runner(*args, **kwargs):
    return build_runner(toy_config(*args, **kwargs))
