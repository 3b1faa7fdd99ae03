"""Metrics for mmengine's evaluator.

H, W: height and width of an image in pixels.
"""

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults

from ..engine.device import Machine
from ..errors import UserError
from ..files import require_writable
from ..registry import METRICS
from ..task import CLASSIFICATION, SEGMENTATION, Task, task_of


@METRICS.register_module()
class DumpLabelMaps(DumpResults):
    """Dump ``img_path`` and ``pred_sem_seg``, an int16 array (H, W), of each image."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the label maps of a batch.

        Args:
            data_batch: Not used.
            data_samples: Predictions, with ``pred_sem_seg.data`` of shape (1, H, W).
        """
        for sample in data_samples:
            labels = sample['pred_sem_seg']['data'].squeeze(0).to('cpu', torch.int16).numpy()
            self.results.append({'img_path': sample['img_path'], 'pred_sem_seg': labels})


def adapt_dump(cfg: Config, machine: Machine, path: str) -> None:
    """Write the predictions of a test run to a pickle file (``--out``).

    Detectors and classifiers: the fields of each data sample, with masks as RLE. Segmentors: only
    the label maps, because the scores of every class and pixel would fill a disk.

    Raises:
        UserError: If the file's name does not end in .pkl or .pickle, or it cannot be written.
    """
    if Path(path).suffix not in ('.pkl', '.pickle'):
        raise UserError(
            f'--out must end in .pkl or .pickle, got {path}: use a name such as results.pkl'
        )
    require_writable(Path(path), '--out')
    dumps: dict[Task | None, str] = {
        SEGMENTATION: 'mmgcvit.DumpLabelMaps',
        CLASSIFICATION: 'DumpResults',
    }
    dump = dict(type=dumps.get(task_of(cfg), 'mmdet.DumpDetResults'), out_file_path=path)
    cfg.test_evaluator = [*evaluators(cfg), dump]


def evaluators(cfg: Config) -> Sequence[MutableMapping]:
    """Return the list of a config's test evaluators. The config may have one or a list."""
    found = cfg.get('test_evaluator') or []
    return found if isinstance(found, list | tuple) else [found]
