"""Curves of the trainings: means and standard deviations over seeds, and files with all numbers.

S: seeds, N: validations of a training.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ...errors import UserError
from ...files import write_atomically
from .plan import BACKBONES, METRICS, Metric, Plan, Training
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


def read_curves(plan: Plan) -> list[Curves]:
    """Read the finished trainings of a plan, in the order of ``METRICS`` and ``BACKBONES``.

    Raises:
        UserError: If trainings of one task have different numbers of iterations.
    """
    found = []
    for task, metrics in METRICS.items():
        trainings = {
            training: iterations
            for training in plan.trainings()
            if training.task == task and (iterations := _validations(training))
        }
        _require_same_validations(trainings)
        for metric, backbone in product(metrics, BACKBONES):
            logs = {t.seed: read_log(t) for t in trainings if t.backbone == backbone}
            if not logs:
                continue
            iterations = next(iter(trainings.values()))
            # mmdet logs no AP where nothing is detected
            values = [
                [log.metrics.get(metric.key, {}).get(i, 0.0) for i in iterations]
                for log in logs.values()
            ]
            values = metric.scale * np.array(values)
            found.append(Curves(task, metric, backbone, tuple(logs), iterations, values))
    return found


def _validations(training: Training) -> tuple[int, ...]:
    """Return the iterations of the validations, or () if the training is not finished."""
    if not training.config.is_file():
        return ()
    loop = Config.fromfile(training.config).train_cfg
    if not is_finished(training, loop.max_iters):
        return ()
    return (*range(loop.val_interval, loop.max_iters, loop.val_interval), loop.max_iters)


def _require_same_validations(trainings: Mapping[Training, tuple[int, ...]]) -> None:
    examples = {iterations: training for training, iterations in trainings.items()}
    if len(examples) > 1:
        (some, one), (others, other) = list(examples.items())[:2]
        raise UserError(
            f'{one.work_dir} has {some[-1]} iterations and {other.work_dir} has {others[-1]}, or '
            'they were validated at different ones, so they cannot be compared: delete one of '
            'these folders, or use another --out'
        )


def write_curves(out: Path, curves: Sequence[Curves], timing: Mapping) -> list[Path]:
    """Write all curves as ``curves.csv``, one line per validation, and all as ``results.json``.

    Args:
        out: Folder of the comparison.
        curves: See :func:`read_curves`.
        timing: See :func:`.measure_times`.

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
