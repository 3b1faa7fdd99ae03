"""Measuring the parts of the report within a time, and writing them as they come."""

import datetime
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ...errors import UserError, did_you_mean
from ...files import require_writable, write_atomically
from ...installed import resources
from ...progress import duration
from ...version import __version__
from .job import Worker
from .page import REHEARSAL, Report, Section, markdown_page, picture
from .parts import PARTS, Part, Plan


def write_report(
    plan: Plan, out: Path, minutes: float = 10, names: Sequence[str] | None = None
) -> Path:
    """Measure the parts of the report and write it after each measurement.

    Args:
        plan: Sizes of the measurements.
        out: Folder of the report: a page, its picture, all numbers as JSON, and a log.
        minutes: Time for the whole report. Whatever does not fit is reported as not measured.
        names: Parts to measure, see ``PARTS``; by default all.

    Returns:
        Path of the page.

    Raises:
        UserError: If a part is unknown, the folder cannot be written, or there is no GPU.
    """
    for name in names or ():
        if name not in PARTS:
            raise UserError(
                f'--parts {name} is not known{did_you_mean(name, PARTS)}: choose from '
                f'{", ".join(PARTS)}'
            )
    if not minutes > 0:
        raise UserError(f'--minutes {minutes:g} is not allowed: use a number above 0')
    if plan.is_rehearsal:
        # for all processes, which otherwise use a GPU that they find
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
        # several threads are slower than one on small tensors
        os.environ.setdefault('OMP_NUM_THREADS', '1')
    elif not torch.cuda.is_available():
        raise UserError(
            'PyTorch finds no GPU: check nvidia-smi, or pass --device cpu for a rehearsal of this '
            'report, whose numbers mean nothing'
        )
    parts = {name: part for name, part in PARTS.items() if not names or name in names}
    report = Report(
        datetime.date.today().isoformat(),
        _device(plan),
        plan.is_rehearsal,
        _versions(),
        finished=False,
        sections={name: Section() for name in parts},
    )
    page = _free_name(out, report)
    require_writable(page, '--out')
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(page.with_suffix('.log').resolve())
        try:
            _write(report, page)
            _measure(plan, parts, report, page, worker, Path(folder), 60 * minutes)
        finally:
            worker.end()
    report.finished = True
    _write(report, page)
    return page


def _measure(
    plan: Plan,
    parts: Mapping[str, Part],
    report: Report,
    page: Path,
    worker: Worker,
    folder: Path,
    seconds: float,
) -> None:
    deadline = time.monotonic() + seconds
    for number, (name, part) in enumerate(parts.items(), 1):
        section, start = report.sections[name], time.monotonic()
        # the others need their shares of what is left
        shares = sum(p.share for p in [*parts.values()][number - 1 :])
        end = start + (deadline - start) * part.share / shares
        jobs = part.jobs(plan, folder)
        for done, job in enumerate(jobs):
            left, total = end - time.monotonic(), deadline - time.monotonic()
            if left <= 1:
                section.missing.append((job.what, 'the time for this part was over'))
                continue
            print(
                f'[{number}/{len(parts)}] {name}, {done + 1} of {len(jobs)}: {job.what}; '
                f'at most {duration(total)} left',
                file=sys.stderr,
                flush=True,
            )
            # a job that hangs leaves time to the others
            rows, reason = worker.run(job, left if job is jobs[-1] else left / 2)
            section.rows += rows
            if reason:
                section.missing.append((job.what, reason))
            _write(report, page)
        section.seconds = time.monotonic() - start
        _write(report, page)


def _write(report: Report, page: Path) -> None:
    numbers = json.dumps(asdict(report), indent=1, default=str)
    write_atomically(page.with_suffix('.json'), numbers.encode())
    png = picture(report)
    if png is not None:
        write_atomically(page.with_suffix('.png'), png)
    write_atomically(page, markdown_page(report, page.stem, png is not None).encode())


def _device(plan: Plan) -> str:
    if plan.is_rehearsal:
        return 'CPU'
    number = torch.cuda.device_count()
    return torch.cuda.get_device_name() + (f' ×{number}' if number > 1 else '')


def _versions() -> str:
    command = ['git', '-C', str(resources()), 'describe', '--always', '--dirty', '--exclude', '*']
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ''
    return f'mmgcvit {__version__}, commit {commit or "unknown"}, torch {torch.__version__}'


def _free_name(out: Path, report: Report) -> Path:
    """Return the path of a page that does not exist yet."""
    device = REHEARSAL if report.rehearsal else report.device.replace('×', 'x')
    stem = f'{report.date}-{"-".join(re.findall("[a-z0-9]+", device.lower()))}'
    names = itertools.chain([stem], (f'{stem}-{number}' for number in itertools.count(2)))
    return next(page for name in names if not (page := out / f'{name}.md').exists())
