"""Comparing processes, and naming those that differ, fail or are missing."""

import copy
import os
import threading

import forks
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from mmgcvit.engine import exchange
from mmgcvit.engine.exchange import Disagreement, Exchange, OtherFailed, name_ranks
from mmgcvit.engine.health import (
    CompareData,
    differing_data,
    differing_processes,
    settings,
    summary,
)
from mmgcvit.errors import UserError

PROCESSES = forks.ROOT / 'tests' / 'data' / 'scripts' / 'processes.py'


@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    """Return the only error that three real processes print, and everything that they print."""
    folder = tmp_path_factory.mktemp('processes')

    def run(kind):
        code, text = forks.run(PROCESSES, kind, out=folder / 'out', timeout=90, ranks=3)
        assert code == 1 and 'Traceback' not in text, text
        (error,) = [line for line in text.splitlines() if line.startswith('error: ')]
        return error, text

    return run


def test_another_config_of_one_process_ends_all_of_them_with_one_line(printed):
    error, text = printed('another config')
    assert error == (
        'error: the processes have different configs: model.size is 1 (processes 0, 2), 2 '
        '(process 1). Start all of them with the same config file, --cfg-options and environment '
        'variables'
    )
    paths = (
        "WARNING - the processes use different paths: data_root is '/disk0/coco' (process 0), "
        "'/disk1/coco' (process 1), '/disk2/coco' (process 2)\n"
    )
    assert text.count(paths) == 1


def test_an_error_of_some_processes_is_printed_once_and_names_them(printed):
    error, _ = printed('two fail')
    assert error == 'error: the disk is full (processes 1-2)'


def test_a_process_that_does_not_join_is_named(printed):
    error, _ = printed('one does not join')
    assert error.startswith('error: process 1 of 3 did not join the run at 127.0.0.1:')
    assert ' within 2 seconds: start tools/dist_train.sh on every node' in error


@pytest.mark.slow
def test_a_process_that_does_not_arrive_at_an_operation_is_named(printed):
    error, _ = printed('one does not arrive')
    assert error.startswith(f'error: process 1 ({os.uname().nodename}, pid ')
    assert 'did not arrive at all_reduce (data/scripts/processes.py:' in error
    assert 'within 2 seconds (env_cfg.dist_cfg.timeout), where processes 0, 2 waited: ' in error
    assert error.endswith('set env_cfg.dist_cfg.timeout to more seconds')


def in_threads(store, *functions, timeout=5.0):
    """Call functions with the connections of as many processes; return results and errors."""
    results = [None] * len(functions)

    def call(rank):
        try:
            results[rank] = functions[rank](Exchange(store, rank, len(functions), timeout))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def store():
    return torch.distributed.HashStore()


def agree(record, judge=None):
    return lambda connection: connection.agree({'n': record}, judge or str, 'come', 'call it')


def test_all_processes_agree_or_raise_the_same_error(store):
    seen = []

    def judge(records):
        seen.append([record['n'] for record in records])
        return 'too many' if sum(seen[-1]) > 5 else None

    def twice(record):
        def run(connection):
            connection.agree({'n': record}, judge, 'come')
            connection.agree({'n': 2 * record}, judge, 'come')

        return run

    results = in_threads(store, *map(twice, range(3)))
    assert seen == [[0, 1, 2], [0, 2, 4]]  # in the first process alone
    assert [(type(error), str(error)) for error in results] == [(Disagreement, 'too many')] * 3


def test_those_that_wait_learn_who_is_missing(store):
    def arrives(connection):
        connection.introduce(f'gpu0{connection.rank}')
        agree(0)(connection)

    def sleeps(connection):
        connection.introduce('gpu09')

    first, _, third = in_threads(store, arrives, sleeps, arrives, timeout=0.5)
    assert str(first) == str(third)
    assert str(first) == (
        f'process 1 (gpu09, pid {os.getpid()}) of 3 did not come within 0.5 seconds: call it'
    )


def test_the_first_process_may_be_the_one_that_is_missing(store, monkeypatch):
    monkeypatch.setattr(exchange, 'MORE_TIME', 0)
    _, second = in_threads(store, lambda _: None, agree(0), timeout=0.3)
    assert str(second) == 'process 0 of 2 did not come within 0.3 seconds: call it'


def test_a_process_that_fails_ends_the_wait_of_the_others(store, monkeypatch):
    monkeypatch.setattr(exchange, 'SAME_ERROR', 0)
    error = UserError('no such file')

    def fails(connection):
        connection.introduce('gpu01')
        return connection.report(error, 'no such file', 'error: no such file')

    first, second = in_threads(store, agree(0), fails, timeout=60)
    assert second == ('error: no such file (process 1)', False)
    assert isinstance(first, OtherFailed)
    assert str(first) == f'process 1 (gpu01, pid {os.getpid()}): no such file'
    # which reports it only if no launcher ends it
    connection = Exchange(store, 1, 2, 60)
    assert connection.report(first, str(first), f'error: {first}') == (f'error: {first}', True)


def test_an_error_of_all_processes_has_no_number(store, monkeypatch):
    monkeypatch.setattr(exchange, 'SAME_ERROR', 0.2)

    def fails(connection):
        return connection.report(RuntimeError('bad'), 'RuntimeError: bad', 'Traceback')

    results = in_threads(store, fails, fails)
    # the second one prints it only if it is on another node
    assert ('Traceback', False) in results
    assert {('Traceback', True), ('process 1:\nTraceback', True)} & {*results}


def test_a_lost_connection_is_not_the_first_error(store, monkeypatch):
    monkeypatch.setattr(exchange, 'SAME_ERROR', 0)
    lost = RuntimeError('[gloo/pair.cc:1] Connection closed by peer [10.0.0.1]:7')
    wrapped = UserError('the validation fails')
    wrapped.__cause__ = lost
    connection = Exchange(store, 1, 2, 5)
    for error in (lost, wrapped):
        text, waits = connection.report(error, str(error), 'Traceback')
        assert waits and text.startswith('error: process 1 has lost the connection to another ')
    # a file is not a connection between processes
    other = OSError('Connection reset by peer')
    assert connection.report(other, 'line', 'Traceback') == ('process 1:\nTraceback', False)


def test_two_processes_with_the_same_rank_are_refused(store):
    Exchange(store, 1, 3, 5).introduce('gpu01')
    with pytest.raises(UserError, match='two processes have rank 1, on gpu01 and gpu02: start'):
        Exchange(store, 1, 3, 5).introduce('gpu02')


def test_a_long_wait_is_explained(store, monkeypatch, capsys):
    monkeypatch.setattr(exchange, 'LATE', 0.1)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    with pytest.raises(Disagreement):
        agree(0)(Exchange(store, 0, 4, 0.5))
    assert capsys.readouterr().err == 'waiting for processes 1-3 to come\n'


def test_ranks_are_grouped():
    assert name_ranks([3]) == 'process 3'
    assert name_ranks([0, 1, 2, 5, 7, 8]) == 'processes 0-2, 5, 7-8'


def record(host='gpu01', **changes):
    """The record of one process on a GPU; no GPU is involved."""
    gpu = dict(name='H100', uuid=str(record.calls), free=79 * 2**30, total=80 * 2**30)
    record.calls += 1
    found = dict(host=host, processes=4, versions={'torch': '2.14'}, settings={'lr': '1'}, gpu=gpu)
    for name, change in changes.items():
        if isinstance(change, dict):
            found[name].update(change)
        else:
            found[name] = change
    return copy.deepcopy(found)


record.calls = 0


def test_equal_processes_are_summarized(log):
    records = [record('gpu01'), record('gpu01'), record('gpu02', gpu=dict(free=78.54 * 2**30))]
    assert differing_processes(records) is None and log == []
    assert summary(records) == '3 processes on 2 hosts, 3 × H100, 78.5 GiB free'
    # process 1 has already imported another library
    records[1]['versions']['mmdet'] = '3.3'
    assert differing_processes(records) is None and log == []
    assert summary([dict(host='a')] * 2) == '2 processes on 1 host'


@pytest.mark.parametrize(
    ('changes', 'error'),
    [
        (dict(processes=8), 'the number of processes is 4 (processes 0-2), 8 (process 3): set NN'),
        (
            dict(versions={'torch': '2.13'}),
            'the processes have different versions: torch is 2.14 (processes 0-2), 2.13 (process 3)'
            '. Install the same environment on all nodes',
        ),
        (
            dict(versions={'torch': '2.13', 'mmdet': '3.3'}),
            'the processes have different versions: torch is 2.14 (processes 0-2), 2.13 (proc',
        ),
        (
            dict(settings={'lr': '2', 'data': "'a/b'"}),
            'the processes have different configs: lr is 1 (processes 0-2), 2 (process 3); data is '
            "not set (processes 0-2), 'a/b' (process 3). Start",
        ),
    ],
)
def test_differences_are_errors_that_name_values_and_processes(changes, error):
    records = [record(), record(), record(), record(**changes)]
    assert differing_processes(records).startswith(error)


def test_many_settings_are_cut_and_hosts_are_named():
    others = {name: '0' for name in 'abcde'}
    records = [record('gpu01'), record('gpu02', settings=others), record('gpu03', settings=others)]
    text = differing_processes(records)
    assert 'a is not set (process 0 on gpu01), 0 (processes 1-2 on gpu02, gpu03); ' in text
    assert '; and 2 more. Start' in text and ' d is' not in text


def test_settings_of_the_first_process_may_differ_and_paths_are_a_warning(log):
    first = {'visualizer.name': "'run 12:00'", 'work_dir': "'a'", 'root': "'/disk1/coco'"}
    other = {'visualizer.name': "'run 12:01'", 'work_dir': "'b'", 'root': "'/disk2/coco'"}
    assert differing_processes([record(settings=first), record(settings=other)]) is None
    assert log == [
        "the processes use different paths: root is '/disk1/coco' (process 0), '/disk2/coco' "
        '(process 1)'
    ]


def test_two_processes_on_one_gpu_are_an_error():
    records = [record(gpu=dict(uuid=uuid)) for uuid in ('A', 'B', 'C', 'B')]
    assert differing_processes(records).startswith('processes 1, 3 use the same GPU (B): start one')
    # torch 2.1 does not know it
    assert differing_processes([record(gpu=dict(uuid='')) for _ in range(2)]) is None


def test_other_gpus_and_little_memory_are_warnings(log):
    records = [record(), record(gpu=dict(name='A100', free=60 * 2**30))]
    assert differing_processes(records) is None
    gpus, memory = log
    assert gpus.startswith('the GPU is H100 (process 0), A100 (process 1): all processes wait')
    assert memory.startswith('only 60.0 of 80.0 GiB are free on the GPU of process 1: nvidia-smi')
    assert summary(records) == '2 processes on 1 host, 1 × H100, 1 × A100, 60.0 GiB free'


def test_numbers_of_samples_are_compared():
    records = [
        dict(host='a', versions={}, samples={'train': 118287, 'val': number})
        for number in (5000, 5000, 4999)
    ]
    assert differing_data(records).startswith(
        'the number of samples of val_dataloader.dataset is 5000 (processes 0-1), 4999 (process 2):'
    )
    assert differing_data(records[:2]) is None


def test_settings_are_the_same_in_every_process():
    cfg = Config(dict(model=dict(type=CompareData, sizes=[1, (2, 3)], none=[]), hook=Hook()))
    assert settings(cfg) == {
        'model.type': repr(CompareData),
        'model.sizes.0': '1',
        'model.sizes.1.0': '2',
        'model.sizes.1.1': '3',
        'model.none': '[]',
        'hook': '<mmengine.hooks.hook.Hook object>',
    }
