"""What the machine is: its software, the tests that need a GPU, and the links between GPUs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from ...engine.launch import end_with_parent
from ...errors import UserError
from ...installed import resources
from .job import Row

RESULT = re.compile(r'(tests/\S+?)::(.+?)(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*)?$')
# the other results are not counted; None is that of a test that is running
KINDS = {'PASSED': 'passed', 'FAILED': 'failed', 'ERROR': 'failed', 'SKIPPED': 'skipped'}
SHOWN = 3  # failures per file
MEGABYTES = (1, 25, 256)  # 25: a bucket of DDP


def environment() -> Iterator[list[Row]]:
    """Describe GPUs, driver and processors, and run ``tools/check_env.py``."""
    rows: list[Row] = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = f'{gpu.total_memory / 1e9:.1f} GB, compute capability {gpu.major}.{gpu.minor}'
        rows.append(_named(f'GPU {number}', f'{gpu.name}, {memory}'))
    if rows:
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader', '--id=0']
        try:
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        except OSError:
            driver = ''
        rows.append(_named('driver', driver or 'unknown, because nvidia-smi does not run'))
    rows.append(_named('processors', str(os.cpu_count())))
    yield rows
    check = [sys.executable, str(resources() / 'tools' / 'check_env.py')]
    done = subprocess.run(check, capture_output=True, text=True)
    for line in (done.stdout or done.stderr).splitlines():
        name, gap, value = line.partition('  ')
        rows.append(_named(name, value.strip()) if gap else _named('', line))
    yield rows


def _named(name: str, value: str) -> Row:
    return {'': name, 'value': value}


def gpu_tests(patterns: Sequence[str]) -> Iterator[list[Row]]:
    """Run test files with pytest and count the results of each.

    Args:
        patterns: Patterns of the files in a checkout.
    """
    root = resources()
    files = [str(f.relative_to(root)) for p in patterns for f in sorted(root.glob(p))]
    if not files:
        raise UserError('there are no tests in an installed package: run this in a checkout')
    if importlib.util.find_spec('pytest') is None:
        raise UserError('pytest is not installed: pip install pytest')
    options = ['-v', '-rfE', '--tb=short', '--color=no', '-p', 'no:cacheprovider']
    run = subprocess.Popen(
        [sys.executable, '-u', '-m', 'pytest', *options, '-m', 'not nightly', *files],
        cwd=root,
        env=os.environ | {'COLUMNS': '300'},  # reasons of failures are cut at this width
        preexec_fn=end_with_parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    assert run.stdout is not None
    rows: dict[str, Row] = {}
    failures: dict[str, dict[str, str]] = {}
    current = 'before the first test'
    for line in run.stdout:
        print(line, end='')
        if line.startswith(('FAILED ', 'ERROR ')):  # in the summary
            file, _, text = line.partition(' ')[2].strip().partition('::')
            for name in failures.get(file, {}):
                if text.startswith(f'{name} - '):
                    failures[file][name] = text.replace(f'{name} - ', f'{name}: ', 1)
        elif found := RESULT.match(line.rstrip()):
            file, name, result = found.groups()
            current = f'in {file}::{name}'
            row = rows.setdefault(file, {'file': file, 'passed': 0, 'failed': 0, 'skipped': 0})
            if kind := KINDS.get(result):
                row[kind] += 1
            if kind == 'failed':
                failures.setdefault(file, {})[name] = name
        else:
            continue
        for file, row in rows.items():
            row['first failures'] = '; '.join([*failures.get(file, {}).values()][:SHOWN])
        yield [*rows.values()]
    if (code := run.wait()) not in (0, 1):
        raise UserError(f'pytest ended with exit code {code} {current}')


def bandwidth(device: str, folder: Path) -> Iterator[list[Row]]:
    """Measure all-reduce between all GPUs with NCCL, or between two processes with gloo.

    Args:
        device: 'cuda' or 'cpu'.
        folder: Folder for temporary files.
    """
    processes = torch.cuda.device_count() if device == 'cuda' else 2
    if processes < 2:
        raise UserError('this machine has one GPU')
    torch.multiprocessing.spawn(_all_reduce, (processes, device, str(folder)), processes)
    yield json.loads((folder / 'bandwidth.json').read_text())


def _all_reduce(rank: int, processes: int, device: str, folder: str) -> None:
    backend = 'nccl' if device == 'cuda' else 'gloo'
    if device == 'cuda':
        torch.cuda.set_device(rank)
    # no port, which another program could use
    store = f'file://{folder}/bandwidth.store'
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=processes)
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    rows: list[Row] = []
    for megabytes in MEGABYTES if device == 'cuda' else MEGABYTES[:1]:
        numbers = torch.zeros(megabytes * 250_000, device=device)  # float32
        runs = 20 if device == 'cuda' else 1
        for run in range(-runs, runs):  # the first half is not measured
            if run == 0:
                wait()
                start = time.perf_counter()
            dist.all_reduce(numbers)
        wait()
        seconds = (time.perf_counter() - start) / runs
        algorithm = megabytes / 1e3 / seconds
        rows.append(
            {
                'processes': f'{processes}, {backend}',
                'message (MB)': megabytes,
                'time (ms)': 1e3 * seconds,
                'algbw (GB/s)': algorithm,
                'busbw (GB/s)': algorithm * 2 * (processes - 1) / processes,
            }
        )
    if rank == 0:
        Path(folder, 'bandwidth.json').write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()
