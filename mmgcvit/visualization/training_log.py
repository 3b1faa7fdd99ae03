"""Reader for losses and validation metrics in the scalars that mmengine logs.

mmengine writes one JSON object per line to ``WORK_DIR/TIMESTAMP/vis_data/scalars.json``. Each start
of a training run, including a resume, creates a new timestamp. In training records, ``step`` is the
iteration. In validation records, ``step`` may be the number of iterations or of epochs
(``LoggerHook(log_metric_by_epoch=True)``, the default); the record does not specify which.
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
    """The scalars of one training run.

    Attributes:
        name (str): Name of the work dir.
        loss (dict[int, float]): Maps iterations to the total loss, in ascending order.
        metrics (dict[str, dict[int, float]]): For each validation metric, maps the number of
            iterations before the validation to the value, in ascending order.
    """

    name: str
    loss: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)


def read_training_log(log: str | os.PathLike) -> TrainingLog:
    """Read the scalars of one training run.

    Files of a resumed run are joined in the order of their timestamps. A later file overrides the
    earlier ones from its first iteration on. Validation results that are logged by epoch are
    assigned to the last iteration of the epoch.

    Args:
        log: A work dir, one of its timestamp folders, or a ``scalars.json``.

    Returns:
        Loss and metrics by iteration.

    Raises:
        FileNotFoundError: If there is no ``scalars.json``.
        ValueError: If a file was not written by mmengine, or contains neither losses nor metrics.
    """
    path = Path(log).expanduser()
    if path.is_file():
        files = [path]
    else:
        files = sorted(path.glob(f'*/vis_data/{SCALARS}'))
        files += sorted(path.glob(f'vis_data/{SCALARS}')) + sorted(path.glob(SCALARS))
    if not files:
        problem = 'contains no training log' if path.exists() else 'does not exist'
        raise FileNotFoundError(
            f'{path} {problem}; expected a work dir with TIMESTAMP/vis_data/{SCALARS} (written '
            f'after the first logged iteration), or a {SCALARS} file'
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
            'expected the scalars of a training run'
        )
    return joined


def _read_scalars(records: list[dict], trained: int) -> TrainingLog:
    """Read the records of one file. ``trained`` is the last iteration logged in earlier files."""
    log = TrainingLog('')
    iteration = trained  # of the latest training record
    # epoch of the latest training record; a validation before the file's first training record
    # belongs to the previous epoch
    epoch = next((int(r['epoch']) - 1 for r in records if _is_training(r) and 'epoch' in r), None)
    firsts: dict[int, int] = {}  # first logged iteration of each epoch
    validations = []  # (step, latest training iteration, latest training epoch, metrics)
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
        if step > 0:  # skip validations without training
            validations.append((step, iteration, epoch, metrics))
    length = _epoch_length(firsts)
    for step, before, epoch, metrics in validations:
        place = step
        if step < before:  # too small for a number of iterations, so it is a number of epochs
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
    """Return the number of iterations per epoch, or None if only one epoch was logged.

    It follows from the first logged iteration of each epoch. The last iterations of an epoch are
    often not logged.
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
            # with log_with_hierarchy=True, names have the phase as a prefix
            record = {
                name.removeprefix('train/').removeprefix('val/'): record[name] for name in record
            }
            int(record['step'])
        except (ValueError, TypeError, KeyError, AttributeError):
            if number == len(lines):  # a killed process may leave an incomplete last line
                break
            raise ValueError(
                f'{file}, line {number}: expected a JSON object with a "step", as mmengine writes '
                f'it, got {line[:60]!r}'
            ) from None
        records.append(record)
    return records


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(path: Path) -> str:
    """Return the name of the work dir that contains a path."""
    if path.is_file():
        path = path.parent
    return (path.parents[1] if path.name == 'vis_data' else path).name


def _truncate(series: dict[int, float], start: float) -> None:
    for iteration in [key for key in series if key >= start]:
        del series[iteration]
