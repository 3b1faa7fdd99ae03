"""Loss and validation metrics of trainings, read from the scalars that mmengine logs.

mmengine writes one JSON object a line to ``WORK_DIR/TIMESTAMP/vis_data/scalars.json``; each start
of a training makes a new timestamp, a resumed one included. A training record counts iterations
in ``step``. What ``step`` is in a validation record is not said: the number of iterations, or of
epochs (``LoggerHook(log_metric_by_epoch=True)``, the default).
"""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

SCALARS = 'scalars.json'
NO_METRICS = frozenset({'step', 'iter', 'epoch', 'time', 'data_time', 'memory'})


@dataclass
class TrainingLog:
    """The scalars of one training.

    Attributes:
        name (str): Name of its folder or file.
        loss (dict[int, float]): Total loss by iteration, in ascending order.
        metrics (dict[str, dict[int, float]]): Values of each validation metric by the number of
            iterations done before that validation, in ascending order.
    """

    name: str
    loss: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)


def read_training_log(log: str | os.PathLike) -> TrainingLog:
    """Read the scalars of one training.

    The files of a resumed training are joined in the order of their timestamps; from the first
    iteration trained in a later file on, only the later file counts. Validation results logged by
    epoch are placed at the iteration at which the epoch ended.

    Args:
        log: A work dir, one of its timestamp folders, or a ``scalars.json``.

    Returns:
        Loss and metrics by iteration.

    Raises:
        FileNotFoundError: There is no ``scalars.json`` where it is expected.
        ValueError: A file is not what mmengine writes, or holds neither losses nor metrics.
    """
    path = Path(log).expanduser()
    if path.is_file():
        files = [path]
    else:
        files = sorted(path.glob(f'*/vis_data/{SCALARS}'))
        files += sorted(path.glob(f'vis_data/{SCALARS}')) + sorted(path.glob(SCALARS))
    if not files:
        there = 'holds none' if path.exists() else 'does not exist'
        raise FileNotFoundError(
            f'no training log: {path} {there}; expected a work dir with '
            f'TIMESTAMP/vis_data/{SCALARS} (written after the first logged iteration), or such a '
            'file'
        )
    joined = TrainingLog(_name(path.resolve()))
    for file in files:
        records = _records(file)
        start = next((_iteration(record) for record in records if _is_training(record)), None)
        if start is not None:
            _truncate(joined.loss, start)
        later = _read_scalars(records, max(joined.loss, default=0))
        starts = [min(series) for series in (later.loss, *later.metrics.values()) if series]
        for series in joined.metrics.values():
            _truncate(series, min(starts, default=math.inf))
        joined.loss.update(later.loss)
        for name, series in later.metrics.items():
            joined.metrics.setdefault(name, {}).update(series)
    joined.metrics = {name: series for name, series in joined.metrics.items() if series}
    if not joined.loss and not joined.metrics:
        raise ValueError(
            f'{", ".join(str(file) for file in files)}: neither a loss nor a metric is logged; '
            'expected the scalars of a training'
        )
    return joined


def _read_scalars(records: list[dict], trained: int) -> TrainingLog:
    """Read one file; ``trained`` is the last iteration logged before it."""
    log = TrainingLog('')
    iteration = trained  # of the latest training record
    # the one it belongs to: a validation that comes first is of the epoch before the file's
    epoch = next((int(r['epoch']) - 1 for r in records if _is_training(r) and 'epoch' in r), None)
    firsts: dict[int, int] = {}  # the first iteration logged in each epoch
    validations = []  # (step, iteration and epoch logged before it, metrics)
    for record in records:
        step = int(record['step'])
        if _is_training(record):
            iteration, epoch = _iteration(record), record.get('epoch')
            if epoch is not None:
                firsts.setdefault(int(epoch), iteration)
            if _is_number(record.get('loss')):
                log.loss[iteration] = float(record['loss'])
            continue
        metrics = {
            name: float(value)
            for name, value in record.items()
            if name not in NO_METRICS and not name.startswith('loss') and _is_number(value)
        }
        if step > 0:  # a validation without training counts from nothing
            validations.append((step, iteration, epoch, metrics))
    length = _epoch_length(firsts)
    for step, before, epoch, metrics in validations:
        place = step
        if step < before:  # no number of iterations, so one of epochs
            place = before
            if step == epoch and length is not None:
                place = max(before, step * length)
        for name, value in metrics.items():
            log.metrics.setdefault(name, {})[place] = value
    return log


def _is_training(record: dict) -> bool:
    return 'loss' in record or 'lr' in record or 'iter' in record


def _iteration(record: dict) -> int:
    return int(record.get('iter', record['step']))


def _epoch_length(firsts: dict[int, int]) -> int | None:
    """Iterations in an epoch, from the first one logged in each; None from a single epoch.

    The last iterations of an epoch often go unlogged, but logging starts anew in each.
    """
    if len(firsts) < 2:
        return None
    low, high = min(firsts), max(firsts)
    return round((firsts[high] - firsts[low]) / (high - low))


def _records(file: Path) -> list[dict]:
    lines = file.read_text(encoding='utf-8').splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            # With log_with_hierarchy=True names carry the phase.
            record = {
                name.removeprefix('train/').removeprefix('val/'): record[name] for name in record
            }
            int(record['step'])
        except (ValueError, TypeError, KeyError, AttributeError):
            if number == len(lines):  # a process that is killed may leave half a line
                break
            raise ValueError(
                f'{file}, line {number}: expected a JSON object with a "step", as mmengine logs '
                f'them, found {line[:60]!r}'
            ) from None
        records.append(record)
    return records


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(path: Path) -> str:
    """The work dir's name, also for a file or folder inside it."""
    if path.is_file():
        path = path.parent
    return (path.parents[1] if path.name == 'vis_data' else path).name


def _truncate(series: dict[int, float], start: float) -> None:
    for iteration in [key for key in series if key >= start]:
        del series[iteration]
