"""How processes find each other. Real ones are started in tests/tools/test_launching.py."""

import socket

import forks
import pytest
import torch
from mmengine.config import Config

from mmgcvit.engine import exchange, health, launch
from mmgcvit.engine.launch import (
    TORCH_SETTINGS,
    end_processes,
    start_processes,
    translate_slurm,
)
from mmgcvit.errors import UserError

TASK = dict(
    SLURM_PROCID='3',
    SLURM_NTASKS='4',
    SLURM_LOCALID='1',
    SLURM_JOB_ID='123456',
    SLURM_STEP_ID='2',
    SLURM_NODELIST='gpu[07-08]',
)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    program = tmp_path / 'scontrol'
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08"'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')


def test_slurm_settings_become_torchs(scontrol):
    task = dict(TASK)
    translate_slurm(task)
    assert {name: task[name] for name in TORCH_SETTINGS} == dict(
        RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_ADDR='gpu07', MASTER_PORT='23458'
    )


def test_an_address_that_is_given_is_kept():
    task = dict(TASK, MASTER_ADDR='10.0.0.1', MASTER_PORT='5')
    translate_slurm(task)
    assert (task['MASTER_ADDR'], task['MASTER_PORT']) == ('10.0.0.1', '5')


def test_without_scontrol_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match=r'nodes gpu\[07-08\] .*: set MASTER_ADDR'):
        translate_slurm(dict(TASK))


@pytest.fixture
def started(monkeypatch):
    """The environment of the second of two processes that torchrun starts."""
    settings = dict(
        RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='localhost', MASTER_PORT='x'
    )
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_more_processes_than_gpus_are_refused(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(
        UserError, match=r'local rank 1 has no GPU: this node has 1\. Start at most 1'
    ):
        start_processes(Config(dict(launcher='pytorch')), 'cuda')


def test_an_address_that_does_not_work_is_named(started):
    with pytest.raises(UserError, match=r'process 1 of 2 cannot connect to .* localhost:x'):
        start_processes(Config(dict(launcher='pytorch')), 'cpu')


def test_a_first_process_that_does_not_listen_is_named(started, monkeypatch, capsys):
    monkeypatch.setattr(launch, 'LATE', 0.1)
    monkeypatch.setenv('MASTER_PORT', port := forks.free_port())
    monkeypatch.setenv('LOCAL_RANK', '0')  # it is on another node
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=0.4))))
    with pytest.raises(UserError, match=rf'localhost:{port} \(.*refused\): the port may be'):
        start_processes(cfg, 'cpu')
    waits = capsys.readouterr().err
    assert waits.startswith(f'waiting for process 0 at localhost:{port} (') and 'refused' in waits
    assert waits.count('\n') == 1


def test_a_port_in_use_is_named(started, monkeypatch):
    with socket.socket() as busy:
        busy.bind(('', 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        for name, value in (('RANK', '0'), ('MASTER_PORT', port)):
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=rf'localhost:{port} \(.*in use'):
            start_processes(Config(dict(launcher='pytorch')), 'cpu')


def test_torchrun_without_launcher_is_refused(started, monkeypatch):
    assert start_processes(Config(dict()), 'cpu') == 1
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    with pytest.raises(UserError, match='torchrun started 2 processes'):
        start_processes(Config(dict()), 'cpu')


@pytest.mark.parametrize('files', [[], ['part_0.pkl']])
def test_the_empty_folder_of_collected_results_is_removed(monkeypatch, tmp_path, files):
    monkeypatch.chdir(tmp_path)
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    folder = tmp_path / '.dist_test'
    folder.mkdir()
    for file in files:  # of another run
        (folder / file).touch()
    end_processes()
    assert folder.exists() == bool(files)


def test_processes_on_gpus_share_the_store_with_mmengine(started, monkeypatch):
    """With stand-ins for the GPU: mmengine connects the processes, by gloo."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
    monkeypatch.setattr(health, '_gpu', lambda: dict(name='H100', uuid='A', free=8, total=9))
    monkeypatch.setattr(torch.cuda.nccl, 'version', lambda: (2, 21, 5))
    for name, value in dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('MASTER_PORT', forks.free_port())
    dist_cfg = dict(backend='gloo', timeout=30)
    assert (
        start_processes(Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dist_cfg))), 'cuda')
        == 1
    )
    try:
        assert exchange.Exchange.current.summary == '1 process on 1 host, 1 × H100, 0.0 GiB free'
        assert exchange.Exchange.current.timeout == 30
    finally:
        end_processes()
    assert exchange.Exchange.current is None
