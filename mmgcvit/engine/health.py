"""Comparison of the processes of a run before their first step.

Processes that differ in their versions, config or data train without an error, with wrong results,
or wait for each other forever.
"""

import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

from ..errors import counted, one_line
from .exchange import Exchange, name_ranks
from .failed_step import versions
from .options import walk

SHOWN = 3  # settings
LEAST_FREE = 0.8  # share of a GPU's memory; less means that another process uses the GPU
SPLITS = ('train', 'val', 'test')
# settings that only the first process uses; their names may contain the time
OF_FIRST = ('work_dir', 'visualizer', 'vis_backends')
Records = Sequence[dict[str, Any]]


def compare_processes(exchange: Exchange, cfg: Config, device: str) -> None:
    """Compare GPUs, versions and configs of all processes. The first process logs warnings.

    Args:
        exchange: Connection to the other processes.
        cfg: Config of this process.
        device: 'cuda' or 'cpu'. The GPU of this process has to be the current one.

    Raises:
        UserError: If they differ, in all processes.
    """
    record: dict[str, Any] = {
        'host': socket.gethostname(),
        'processes': exchange.size,
        'versions': _versions(),
        'settings': settings(cfg),
    }
    if device == 'cuda':
        if torch.distributed.is_nccl_available():
            record['versions']['nccl'] = '.'.join(map(str, torch.cuda.nccl.version()))
        record['gpu'] = _gpu()

    def judge(records: Records) -> str | None:
        exchange.summary = summary(records)
        return differing_processes(records)

    exchange.agree(
        record,
        judge,
        f'join the run at {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}',
        'start tools/dist_train.sh on every node with the same GPUS, NNODES, MASTER_ADDR and PORT, '
        'each with its own NODE_RANK, and read the output of the nodes that are missing',
    )


def settings(cfg: Config) -> dict[str, str]:
    """Return the dotted names and the texts of all values of a config."""
    return {
        name: re.sub(r' at 0x[0-9a-f]+', '', repr(value))  # of objects that scripts pass
        for name, value in walk(cfg)
        if not (isinstance(value, Mapping | list | tuple) and value)
    }


def differing_processes(records: Records) -> str | None:
    """Return the first difference that makes a run wrong, or None; log warnings about others.

    Args:
        records: Records of all processes, sorted by rank; see :func:`compare_processes`.
    """
    hosts = [record['host'] for record in records]
    if text := _difference([record['processes'] for record in records], hosts):
        return (
            f'the number of processes is {text}: set NNODES and the number of GPUs per node to the '
            'same values on all nodes'
        )
    problem = (
        _differing_settings([record['settings'] for record in records], hosts)
        or _differing_versions([record['versions'] for record in records], hosts)
        or _shared_gpu([(record.get('gpu') or {}).get('uuid') for record in records], hosts)
    )
    if problem:
        return problem
    gpus = [record['gpu'] for record in records if record.get('gpu')]
    if text := _difference([gpu['name'] for gpu in gpus], hosts):
        _warn(f'the GPU is {text}: all processes wait for the slowest one in each step')
    for rank, gpu in enumerate(gpus):
        if gpu['free'] < LEAST_FREE * gpu['total']:
            _warn(
                f'only {_gib(gpu["free"])} of {_gib(gpu["total"])} GiB are free on the GPU of '
                f'{_place([rank], hosts)}: nvidia-smi shows what else uses it'
            )
    return None


def summary(records: Records) -> str:
    """Return the number of processes and hosts, and the GPUs with their free memory."""
    parts = [
        f'{counted(len(records), "process", "processes")} on '
        f'{counted(len({record["host"] for record in records}), "host")}'
    ]
    if gpus := [record['gpu'] for record in records if record.get('gpu')]:
        names = Counter(gpu['name'] for gpu in gpus)
        parts += [f'{number} × {name}' for name, number in names.items()]
        parts.append(f'{_gib(min(gpu["free"] for gpu in gpus))} GiB free')
    return ', '.join(parts)


class CompareData(Hook):
    """Compare the numbers of samples of all processes, and log one line if everything agrees.

    mmengine divides the indices of a dataset among the processes. If the lengths differed, they
    would wait for each other at the end of an epoch, or skip images without an error.
    """

    priority = 'VERY_HIGH'  # no other hook waits for a process that ends here

    def before_run(self, runner: Runner) -> None:
        """Compare them.

        Raises:
            UserError: If they differ, in all processes.
        """
        exchange = Exchange.current
        if exchange is None or exchange.size == 1:
            return
        loops = {split: getattr(runner, f'_{split}_loop') for split in SPLITS}
        samples = {
            split: len(loop.dataloader.dataset)
            for split, loop in loops.items()
            if isinstance(loop, BaseLoop) and isinstance(loop.dataloader.dataset, Sized)
        }
        # now with the versions of the libraries that the config uses
        record = {'host': socket.gethostname(), 'versions': _versions(), 'samples': samples}
        exchange.agree(record, differing_data, 'load the data')
        if is_main_process():
            print_log(f'{exchange.summary}; same versions, config and data', 'current')


def differing_data(records: Records) -> str | None:
    """Return how the data or the versions of the processes differ, or None.

    Args:
        records: Records of all processes, sorted by rank; see :class:`CompareData`.
    """
    hosts = [record['host'] for record in records]
    for split in SPLITS:
        numbers = [record['samples'].get(split) for record in records]
        if text := _difference(numbers, hosts):
            return (
                f'the number of samples of {split}_dataloader.dataset is {text}: copy the same '
                'data to all nodes, and start all processes with the same paths'
            )
    return _differing_versions([record['versions'] for record in records], hosts)


def _differing_settings(configs: Sequence[dict[str, str]], hosts: Sequence[str]) -> str | None:
    names = dict.fromkeys(
        name for config in configs for name in config if name.partition('.')[0] not in OF_FIRST
    )
    wrong: list[str] = []
    paths: list[str] = []
    for name in names:
        values = [config.get(name, 'not set') for config in configs]
        if text := _difference(values, hosts):
            # the disks of the nodes may be mounted at different places
            is_path = all(value[:1] in '\'"' and '/' in value for value in values)
            (paths if is_path else wrong).append(f'{name} is {text}')
    if paths:
        _warn(f'the processes use different paths: {_first(paths)}')
    if wrong:
        return (
            f'the processes have different configs: {_first(wrong)}. Start all of them with the '
            'same config file, --cfg-options and environment variables'
        )
    return None


def _differing_versions(found: Sequence[dict[str, str]], hosts: Sequence[str]) -> str | None:
    names = dict.fromkeys(name for versions in found for name in versions)
    differences = (
        (name, _difference([versions.get(name, 'not imported') for versions in found], hosts))
        for name in names
        # one process may import a library later than the others
        if len({versions[name] for versions in found if name in versions}) > 1
    )
    if texts := [f'{name} is {text}' for name, text in differences if text]:
        return (
            f'the processes have different versions: {_first(texts)}. Install the same environment '
            'on all nodes (python tools/check_env.py shows it)'
        )
    return None


def _shared_gpu(uuids: Sequence[str | None], hosts: Sequence[str]) -> str | None:
    for uuid, number in Counter(uuids).items():
        if uuid and number > 1:
            ranks = [rank for rank, other in enumerate(uuids) if other == uuid]
            return (
                f'{_place(ranks, hosts)} use the same GPU ({uuid}): start one process per GPU, and '
                'check CUDA_VISIBLE_DEVICES and NODE_RANK'
            )
    return None


def _difference(values: Sequence[Any], hosts: Sequence[str]) -> str | None:
    """Return '1 (processes 0-6), 2 (process 7)', or None if all values are the same."""
    ranks: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    if len(ranks) < 2:
        return None
    return ', '.join(
        f'{one_line(value, 80)} ({_place(which, hosts)})' for value, which in ranks.items()
    )


def _place(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    names = dict.fromkeys(hosts[rank] for rank in ranks) if len({*hosts}) > 1 else ()
    return name_ranks(ranks) + (f' on {", ".join(names)}' if names else '')


def _first(texts: Sequence[str]) -> str:
    more = f'; and {len(texts) - SHOWN} more' if len(texts) > SHOWN else ''
    return '; '.join(texts[:SHOWN]) + more


def _versions() -> dict[str, str]:
    found = versions()
    found.pop('gpu', None)  # compared by itself
    return found


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info()
    # torch 2.1 does not know the uuid
    uuid = str(getattr(properties, 'uuid', ''))
    return {'name': properties.name, 'uuid': uuid, 'free': free, 'total': total}


def _gib(size: float) -> str:
    return f'{size / 2**30:.1f}'


def _warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)
