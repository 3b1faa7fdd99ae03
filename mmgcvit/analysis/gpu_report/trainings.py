"""Training steps of configs on drawn images, and a training that is resumed."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...datasets import draw_shape_classes, draw_shapes
from ...engine import adapt_amp, build_runner, load_config
from ...engine.optimizers.mixed_precision import has_bfloat16
from ...engine.options import walk
from ...engine.wrappers import dataset_configs
from ...files import write_atomically
from ...weights import read_checkpoint
from ..speed import peak_memory
from .job import Row

# classes of COCO for the drawn shapes, so that the published networks need no other number of them
NAMES = {'circle': 'sports ball', 'rectangle': 'book', 'triangle': 'kite'}
DRAWN = 32
LOADED = 8  # images for the loading rate
COCO_IMAGES = 117_266  # of train2017 that have objects, on which mmdet trains


def training(config: str, folder: Path, steps: tuple[int, int], side: int) -> Iterator[list[Row]]:
    """Measure training steps of a config on drawn images, with its data pipeline and its runner.

    Args:
        config: Name of a config of this package.
        folder: Folder for temporary files.
        steps: Numbers of steps before the measurement and during it.
        side: Longest side of the images; 0 for the config's own sizes.
    """
    cfg = _on_drawn_images(config, folder, side)
    epochs = cfg.train_cfg.get('max_epochs')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=sum(steps), val_interval=10**9)
    cfg.default_hooks.update(logger=None, checkpoint=None)
    runner = build_runner(cfg)
    clock = _Clock(*steps)
    runner.register_hook(clock, priority='LOWEST')
    runner.train()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    waits, _ = runner.message_hub.get_scalar('train/data_time').data
    wrapper = runner.cfg.optim_wrapper
    loader = cfg.train_dataloader
    precision = wrapper.get('dtype', 'float16') if 'Amp' in wrapper.type else 'float32'
    if 'BFloat16' in wrapper.type and has_bfloat16(device):
        precision = 'bfloat16'
    rate = loader.batch_size * steps[1] / clock.seconds
    hours = epochs * COCO_IMAGES / rate / 3600 if epochs else None
    yield [
        {
            'config': Path(config).stem,
            'precision': precision,
            'images per step': loader.batch_size,
            'images/s': rate,
            'step (ms)': 1e3 * clock.seconds / steps[1],
            'waiting for data (ms)': 1e3 * float(sum(waits[-steps[1] :])) / steps[1],
            'memory (GB)': peak_memory(device) / 1e9,
            'workers': loader.num_workers,
            'images/s of one worker': _loading_rate(runner),
            'schedule, 1 GPU (h)': hours,
            'schedule, 8 GPUs (h)': hours / 8 if hours else None,
        }
    ]


def _on_drawn_images(config: str, folder: Path, side: int) -> Config:
    cfg = load_config(config, folder / 'work', {'model.backbone.init_cfg': None})
    # drawn once: the next training finds them
    draw_shapes(folder / 'shapes', num_train=DRAWN, num_val=1, progress=False)
    coco = folder / 'shapes' / 'coco'
    annotations = coco / 'annotations' / 'instances_train2017.json'
    content = json.loads(annotations.read_text())
    for category in content['categories']:
        category['name'] = NAMES[category['name']]
    named = write_atomically(folder / 'instances.json', json.dumps(content).encode())
    loader = cfg.train_dataloader
    # other samplers end an epoch after a few steps and wait two seconds before the next one
    loader.sampler = ConfigDict(type='InfiniteSampler', shuffle=True)
    for _, dataset in dataset_configs(loader.dataset, ''):
        if 'ADE' in dataset['type']:
            dataset['data_root'] = str(folder / 'shapes' / 'ADEChallengeData2016')
        else:
            dataset.update(data_root=str(coco), ann_file=str(named))
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{part}'] = None
    if side:
        small: dict[str, Any] = dict(scale=(side, side), scales=[(side, side)], size=(side, side))
        small['crop_size'] = (side // 2, side // 2)
        small |= dict(num=16, max_per_img=16)  # regions, which take most of the time
        # not in the complete model: anchors have scales too
        parts = [loader.dataset, cfg.model.data_preprocessor, cfg.model.train_cfg]
        for _, node in list(walk(parts)):
            if isinstance(node, dict):
                node.update({key: small[key] for key in small.keys() & node.keys()})
    return cfg


class _Clock(Hook):
    """Measure the time of all steps together, since a GPU may be steps behind the host.

    Attributes:
        seconds: The time.
    """

    def __init__(self, before: int, measured: int) -> None:
        self._first, self._last = before, before + measured
        self.seconds = 0.0

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        if runner.iter + 1 in (self._first, self._last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds


def _loading_rate(runner: Runner) -> float:
    """Return the images per second that the pipeline of a training loads in one process."""
    dataset = runner.train_dataloader.dataset
    start = time.perf_counter()
    for index in range(LOADED):
        dataset[index % len(dataset)]
    return LOADED / (time.perf_counter() - start)


def train_classifier(
    folder: Path, name: str, steps: int, resumed_from: str | None = None
) -> Iterator[list[Row]]:
    """Train a small classifier in deterministic mode, with two checkpoints.

    Args:
        folder: Folder for temporary files.
        name: Name of the work dir in it.
        steps: Number of steps.
        resumed_from: Name of the work dir of a training whose first checkpoint is resumed. The last
            checkpoints of both are compared.
    """
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # cuBLAS is deterministic only with this
    draw_shape_classes(folder / 'classes', num_train=DRAWN, num_val=1, progress=False)
    cfg = load_config('classification/gcvit_shapes.py', folder / name)
    cfg.train_dataloader.dataset.data_root = str(folder / 'classes')
    cfg.train_dataloader.update(batch_size=8, sampler=dict(type='InfiniteSampler', shuffle=True))
    for part in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{part}'] = cfg[f'test_{part}'] = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=10**9)
    cfg.default_hooks.update(
        logger=None,
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=steps // 2),
    )
    cfg.randomness = dict(seed=0, deterministic=True)
    if resumed_from:
        cfg.resume = str(folder / resumed_from / f'iter_{steps // 2}.pth')
    build_runner(cfg, adapt_amp).train()
    if resumed_from:
        yield [compare(*(folder / each / f'iter_{steps}.pth' for each in (resumed_from, name)))]


def compare(complete: Path, resumed: Path) -> Row:
    """Compare the weights and the states of the optimizer in the checkpoints of two trainings."""
    first, second = _tensors(complete), _tensors(resumed)
    equal = [x for x in first if x in second and torch.equal(first[x], second[x])]
    different = sorted({*first, *second} - {*equal})
    return {
        'checkpoint': complete.name,
        'equal bit by bit': 'yes' if not different else 'no',
        'tensors of weights and optimizer': len(equal) + len(different),
        'different': len(different),
        'first that differ': ', '.join(different[:3]),
    }


def _tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of the weights and the optimizer in a checkpoint, by their names."""
    content = read_checkpoint(path)
    parts = {name: content[name] for name in ('state_dict', 'optimizer')}
    return {name: value for name, value in walk(parts) if isinstance(value, torch.Tensor)}
