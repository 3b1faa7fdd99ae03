"""Curves of the trainings: means and standard deviations over seeds, and files with all numbers.

S: seeds, N: validations of a training.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ...errors import UserError
from ...files import write_atomically
from .plan import BACKBONES, METHODS, METRICS, Metric, Training
from .trainings import is_finished, read_log


@dataclass(frozen=True)
class Curves:
    """One metric of one backbone, for all seeds that are finished.

    Attributes:
        task: 'detection' or 'segmentation'.
        metric: The metric.
        backbone: One of ``BACKBONES``.
        seeds: The seeds, S.
        iterations: Iterations of the validations, N.
        values: The metric in percent, (S, N).
    """

    task: str
    metric: Metric
    backbone: str
    seeds: tuple[int, ...]
    iterations: tuple[int, ...]
    values: np.ndarray

    def mean(self) -> np.ndarray:
        """Return the mean over seeds, (N,)."""
        return self.values.mean(0)

    def spread(self) -> np.ndarray:
        """Return the standard deviation over seeds, (N,); 0 for a single seed."""
        return _deviation(self.values)

    def last(self) -> tuple[float, float]:
        """Return mean and standard deviation of the last validation."""
        return float(self.mean()[-1]), float(self.spread()[-1])

    def best(self) -> tuple[float, float]:
        """Return mean and standard deviation of each seed's best validation."""
        best = self.values.max(1)
        return float(best.mean()), float(_deviation(best))


def _deviation(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over the first axis."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])


def read_curves(out: Path) -> list[Curves]:
    """Read all finished trainings of a comparison, in the order of ``METRICS`` and ``BACKBONES``.

    Raises:
        UserError: If trainings of one task were validated after different iterations.
    """
    found = []
    for task in METHODS:
        iterations: dict[tuple[int, ...], Training] = {}
        for backbone in BACKBONES:
            logs = {t.seed: read_log(t) for t in _finished(out, task, backbone)}
            for metric in METRICS[task] if logs else ():
                series = {seed: log.metrics[metric.key] for seed, log in logs.items()}
                for seed, values in series.items():
                    training = Training(out, task, backbone, seed)
                    iterations.setdefault(tuple(values), training)
                if len(iterations) > 1:
                    one, other = (t.work_dir for t in list(iterations.values())[:2])
                    raise UserError(
                        f'{one} and {other} were validated after different iterations, so they '
                        'cannot be compared: delete one of them, or use another --out'
                    )
                values = np.array([list(values.values()) for values in series.values()])
                (validated,) = iterations
                found.append(
                    Curves(
                        *(task, metric, backbone, tuple(series), validated),
                        metric.scale * values,
                    )
                )
    return found


def _finished(out: Path, task: str, backbone: str) -> list[Training]:
    folders = (out / task / backbone).glob('seed*')
    seeds = sorted(int(folder.name.removeprefix('seed')) for folder in folders)
    trainings = [Training(out, task, backbone, seed) for seed in seeds]
    return [
        training
        for training in trainings
        if training.config.is_file()
        and is_finished(training, Config.fromfile(training.config).train_cfg.max_iters)
    ]


def write_curves(out: Path, curves: Sequence[Curves], timing: Mapping | None) -> list[Path]:
    """Write all curves as ``curves.csv``, one line per validation, and all as ``results.json``.

    Args:
        out: Folder of the comparison.
        curves: See :func:`read_curves`.
        timing: See :func:`.measure_times`, or None if not measured.

    Returns:
        The paths of the files.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(['task', 'metric', 'backbone', 'seed', 'iteration', 'value'])
    for one in curves:
        for seed, values in zip(one.seeds, one.values, strict=True):
            for iteration, value in zip(one.iterations, values, strict=True):
                row = [one.task, one.metric.name, one.backbone, seed, iteration, f'{value:.2f}']
                writer.writerow(row)
    results = [
        asdict(one)
        | {
            'metric': one.metric.name,
            'values': one.values.tolist(),
            'mean': one.mean().tolist(),
            'standard deviation': one.spread().tolist(),
            'last': one.last(),
            'best': one.best(),
        }
        for one in curves
    ]
    text = json.dumps({'curves': results, 'timing': timing}, indent=1)
    return [
        write_atomically(out / 'curves.csv', table.getvalue().encode()),
        write_atomically(out / 'results.json', text.encode()),
    ]
