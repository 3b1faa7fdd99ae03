"""The small models of tests/data/configs with random weights, for the tests of inference."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mmgcvit.analysis.building import build_untrained
from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import load_config
from mmgcvit.inference import load_trained

DATA = Path(__file__).parent / 'data'
CONFIGS = {
    'detection': DATA / 'configs' / 'mask_rcnn_tiny.py',
    'segmentation': DATA / 'configs' / 'upernet_tiny.py',
    'classification': DATA / 'configs' / 'classifier_tiny.py',
}


@dataclass(frozen=True)
class Models:
    """Drawn data, and a checkpoint for each task in the same folder."""

    root: Path

    @property
    def images(self):
        return sorted((self.root / 'shapes/coco/val2017').glob('*.jpg'))

    def checkpoint(self, task):
        return str(self.root / f'{task}.pth')

    def load(self, task, **options):
        return load_trained(CONFIGS[task], self.checkpoint(task), 'cpu', options)


def draw(root):
    """Draw the data and save the checkpoints."""
    draw_shapes(root / 'shapes', num_train=1, num_val=2, progress=False)
    models = Models(root)
    for task, config in CONFIGS.items():
        save_checkpoint(config, models.checkpoint(task))
    return models


def save_checkpoint(config, path, **meta):
    """Save random weights for a config, as a training saves its own."""
    torch.manual_seed(0)
    model = build_untrained(load_config(config))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
