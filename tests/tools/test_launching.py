"""The documented commands, as a user runs them, on drawn data and without a GPU."""

import json
import math
import os
import re
import socket
import sys
import time
from pathlib import Path

import forks
import psutil
import pytest
import torch
from launching import (
    CONFIGS,
    DATA,
    MIXED,
    ROOT,
    UPERNET,
    metrics_of_test,
    metrics_of_validation,
    script,
)
from mmengine.fileio import load

from mmgcvit.datasets import draw_shapes
from mmgcvit.errors import UserError
from mmgcvit.visualization import read_training_log

CONFIG = CONFIGS / 'mask_rcnn_tiny.py'


def assert_ranks_agree_and_loss_falls(work_dir):
    first, second = (torch.load(work_dir / f'rank_{rank}.pth') for rank in (0, 1))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    losses = list(read_training_log(work_dir).loss.values())
    assert len(losses) >= 12 and all(map(math.isfinite, losses))
    assert losses[-1] < 0.85 * losses[0]
    return first


def test_mask_rcnn_trains_in_two_processes(mask_rcnn):
    work_dir, printed = mask_rcnn
    assert_ranks_agree_and_loss_falls(work_dir)
    assert printed.count('running on the CPU, 2 processes connected by gloo\n') == 1
    line = 'INFO - 2 processes on 1 host; same versions, config and data\n'
    assert printed.count(line) == 1
    assert printed.index(line) < printed.index('[1][1/4]')
    assert 'broadcast_buffers' not in printed
    # 4 images a step where the config's rate is meant for 8
    assert 'Scaling the original LR by 0.5' in printed
    assert re.search(r'\[2\]\[4/4\] .* lr: 2.0000e-03', printed)


def test_test_gives_the_metrics_of_the_validation_and_writes_what_it_is_told(
    evaluate, mask_rcnn, tmp_path
):
    checkpoint = mask_rcnn[0] / 'epoch_3.pth'
    outputs = ('--out', tmp_path / 'new' / 'found.pkl', '--show-dir', tmp_path / 'painted')
    evaluate(CONFIG, checkpoint, '--work-dir', tmp_path / 'work', *outputs)
    metrics = metrics_of_test(tmp_path / 'work')
    assert metrics == metrics_of_validation(mask_rcnn[0])
    assert metrics['coco/AR@100'] > 0 and 'coco/segm_mAP' in metrics
    found = load(tmp_path / 'new' / 'found.pkl')
    assert len(found) == 4
    assert all({'bboxes', 'masks'} <= set(image['pred_instances']) for image in found)
    painted = sorted(path.name for path in (tmp_path / 'painted').iterdir())
    assert painted == [f'{index:012d}.jpg' for index in range(1, 5)]


def test_ddp_averages_to_the_gradients_of_one_process(tmp_path):
    script, out = DATA / 'scripts' / 'ddp_gradients.py', tmp_path / 'printed'
    code, printed = forks.run(script, tmp_path, out=out, ranks=2)
    assert code == 0, printed[-4000:]
    for rank in (0, 1):
        results = json.loads((tmp_path / f'rank_{rank}.json').read_text())
        # two steps with each kind of buckets
        assert len(results) == 4
        for result in results:
            assert result['tensors'] > 50
            assert result['error'] < 1e-5 * result['scale']


def test_a_process_without_a_gpu_ends_all_of_them(run):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    arguments = ('--nproc_per_node=2', DATA / 'scripts' / 'one_gpu_too_few.py')
    printed = run(*torchrun, '--local-addr=127.0.0.1', *arguments, code=1)
    # torchrun's first request is enough: its last resort comes 30 seconds later
    assert 'SIGTERM' in printed and 'SIGKILL' not in printed
    ours = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(ours) == 1
    assert ours[0].startswith('error: local rank 1 has no GPU: this node has 0. Start at most')


def test_an_error_of_all_processes_is_printed_once_and_last(run, tmp_path):
    missing = ('--cfg-options', 'train_dataloader.dataset.data_root=no')
    command = script('dist_train.sh', UPERNET, 2, '--work-dir', tmp_path, *missing)
    printed = run(*command, code=1)
    *others, error = printed.splitlines()
    assert error.startswith('error: [dataset] train: data_root no does not exist')
    assert len(others) < 15 and printed.count('error: ') == 1, printed
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'System environment' in log and error in log


def test_an_error_of_another_process_is_printed_with_its_number(run):
    launch = [sys.executable, ROOT / 'tools' / '_launch.py', 2]
    printed = run(*launch, DATA / 'scripts' / 'one_gpu_too_few.py', code=1)
    (error,) = printed.splitlines()
    assert error.startswith('error: local rank 1 has no GPU') and error.endswith(' (process 1)')


def test_other_data_of_one_process_is_an_error_before_the_first_step(folder, tmp_path):
    draw_shapes(tmp_path / 'fewer', num_train=3, num_val=4, progress=False)
    code, printed = forks.run(
        *(DATA / 'scripts' / 'train_on_other_data.py', UPERNET, '--launcher', 'pytorch'),
        *('--work-dir', tmp_path / 'work'),
        out=tmp_path / 'printed',
        cwd=folder,
        ranks=2,
        SHAPES=str(folder / 'shapes'),
        OTHER_SHAPES=str(tmp_path / 'fewer'),
    )
    assert code == 1
    assert 'the processes use different paths: data_root is' in printed
    assert printed.splitlines()[-1] == (
        'error: the number of samples of train_dataloader.dataset is 16 (process 0), 3 (process '
        '1): copy the same data to all nodes, and start all processes with the same paths'
    )
    assert printed.count('error: ') == 1 and 'loss: ' not in printed


def test_wrong_arguments_of_all_processes_are_printed_once(train, tmp_path):
    printed = train(UPERNET, tmp_path, '--no-such-option', code=2)
    assert printed.count('unrecognized arguments: --no-such-option\n') == 1
    assert printed.count('usage: ') == 1


def test_a_port_in_use_is_refused(run):
    with socket.socket() as busy:
        busy.bind(('', 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        printed = run(*script('dist_train.sh', CONFIGS / 'upernet_tiny.py', 2), code=1, PORT=port)
    assert printed == f'error: port {port} is in use: set PORT to a free one\n'


def test_the_processes_of_a_killed_launcher_end_with_it(tmp_path):
    """They would write checkpoints beside those of the training that resumes."""
    command = [sys.executable, ROOT / 'tools' / '_launch.py', 2, DATA / 'scripts' / 'waiting.py']
    with open(tmp_path / 'printed', 'w') as printed:
        launcher = psutil.Popen(
            list(map(str, command)),
            env=os.environ | forks.ENVIRONMENT,
            stdout=printed,
            stderr=printed,
        )
    try:
        deadline = time.monotonic() + 120
        while (tmp_path / 'printed').read_text().count('connected') < 2:
            told = (tmp_path / 'printed').read_text()[-3000:]
            assert launcher.poll() is None and time.monotonic() < deadline, told
            time.sleep(0.1)
        workers = launcher.children(recursive=True)
        assert len(workers) >= 2
    finally:
        launcher.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert alive == []


USAGE = {
    'dist_train.sh': 'CONFIG GPUS [arguments of tools/train.py]',
    'dist_test.sh': 'CONFIG CHECKPOINT GPUS [arguments of tools/test.py]',
    'slurm_train.sh': 'PARTITION JOB CONFIG [arguments of tools/train.py]',
    'slurm_test.sh': 'PARTITION JOB CONFIG CHECKPOINT [arguments of tools/test.py]',
}


@pytest.mark.parametrize('name', USAGE)
def test_usage(run, name):
    usage = run(*script(name, '--help'))
    assert f'bash tools/{name} {USAGE[name]}\n' in usage
    assert run(*script(name, CONFIGS / 'upernet_tiny.py'), code=2) == usage


MISTAKES = [
    (['dist_train.sh', 'no.py', 2], {}, 'the config no.py does not exist'),
    (['dist_train.sh', 'detection/cascade_gcvit_s.py', 0], {}, 'GPUS must be an integer of at'),
    (['dist_train.sh', UPERNET, 'two'], {}, "GPUS must be an integer of at least 1, got 'two'"),
    (['dist_train.sh', UPERNET, 0], {}, "GPUS must be an integer of at least 1, got '0'"),
    (['dist_train.sh', UPERNET, 2], {'NNODES': '2'}, 'NNODES is 2: set MASTER_ADDR'),
    (
        ['dist_train.sh', UPERNET, 2],
        {'NNODES': '2', 'NODE_RANK': '2'},
        "NODE_RANK must be from 0 to NNODES - 1 = 1, got '2'",
    ),
    (['dist_train.sh', UPERNET, 2], {'PORT': '70000'}, "PORT must be from 1 to 65535, got '70000'"),
    (['dist_train.sh', UPERNET, 2], {'MMGCVIT_VENV': '/no'}, 'MMGCVIT_VENV is /no, which has no'),
    (['dist_test.sh', UPERNET, 'no.pth', 2], {}, 'the checkpoint no.pth does not exist'),
    (['slurm_train.sh', 'gpu', 'job', 'no.py'], {}, 'the config no.py does not exist'),
    (['slurm_test.sh', 'gpu', 'job', UPERNET, 'no.pth'], {}, 'the checkpoint no.pth does not'),
    (['slurm_train.sh', 'gpu', 'job', UPERNET], {'GPUS': 'x'}, 'GPUS must be an integer of at'),
]


@pytest.mark.parametrize(('command', 'variables', 'message'), MISTAKES)
def test_mistakes_are_one_line(run, command, variables, message):
    printed = run(*script(*command), code=1, **variables)
    assert printed.startswith(f'error: {message}')
    assert printed.count('\n') == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['test.py', UPERNET, 'no.pth'], 'the checkpoint no.pth does not exist'),
        (
            ['test.py', UPERNET, 'https://host/x.pth', '--out', 'x.txt'],
            '--out must end in .pkl or .pickle, got x.txt',
        ),
        (['test.py', UPERNET, 'x.pth', '--tta', '--tiles'], '--tta and --tiles cannot be combined'),
        (['train.py', UPERNET, '--resume', 'no.pth'], 'the checkpoint no.pth does not exist'),
        (
            ['train.py', UPERNET, '--launcher', 'pytorch'],
            '--launcher pytorch needs the environment variables RANK, WORLD_',
        ),
        (
            ['train.py', UPERNET, '--launcher', 'slurm'],
            '--launcher slurm needs the environment variables SLURM_PROCID, ',
        ),
    ],
)
def test_mistakes_in_the_tools_are_one_line(load_tool, monkeypatch, arguments, message):

    name, *rest = map(str, arguments)
    monkeypatch.syspath_prepend(str(DATA / 'scripts'))
    monkeypatch.setattr(sys, 'argv', [name, *rest])
    with pytest.raises(UserError) as error:
        load_tool(name.removesuffix('.py')).main()
    assert str(error.value).startswith(message)


def test_shell_scripts_are_clean(run):
    shellcheck = Path(sys.prefix) / 'bin' / 'shellcheck'
    if not shellcheck.exists():
        pytest.skip('shellcheck is not installed')
    assert run(shellcheck, '-x', '-P', ROOT, *sorted((ROOT / 'tools').glob('*.sh'))) == ''


@pytest.mark.slow
def test_cascade_trains_in_two_processes_and_mixed_precision(train, tmp_path):
    printed = train(CONFIGS / 'cascade_tiny.py', tmp_path, '--amp')
    weights = assert_ranks_agree_and_loss_falls(tmp_path)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    line = 'running on the CPU, 2 processes connected by gloo, SyncBN replaced by BN\n'
    assert printed.count(line) == 1
    (line,) = (line for line in printed.splitlines() if 'mixed precision: ' in line)
    assert MIXED in line


@pytest.mark.slow
def test_upernet_trains_in_two_processes(upernet):
    work_dir, printed = upernet
    weights = assert_ranks_agree_and_loss_falls(work_dir)
    # BatchNorm's statistics are among what agrees
    assert any(name.endswith('running_var') for name in weights)
    assert printed.count('connected by gloo, SyncBN replaced by BN\n') == 1


@pytest.mark.slow
def test_segmentation_merges_views(evaluate, upernet, tmp_path):
    arguments = (UPERNET, upernet[0] / 'iter_24.pth', '--work-dir', tmp_path / 'work', '--tta')
    outputs = ('--out', tmp_path / 'maps.pkl', '--show-dir', tmp_path / 'painted')
    evaluate(*arguments, *outputs)
    metrics = metrics_of_test(tmp_path / 'work')
    assert metrics.keys() == metrics_of_validation(upernet[0]).keys()
    assert metrics['mIoU'] > 10 and metrics != metrics_of_validation(upernet[0])
    maps = load(tmp_path / 'maps.pkl')
    assert [Path(image['img_path']).name for image in maps] == sorted(
        path.name for path in (tmp_path / 'painted').iterdir()
    )
    assert all(image['pred_sem_seg'].ndim == 2 for image in maps)


@pytest.mark.slow
def test_images_are_predicted_in_tiles(evaluate, mask_rcnn, upernet, tmp_path):
    tiles = ('--tiles', 150, '--tile-overlap', 50, '--out', tmp_path / 'found.pkl')
    outputs = ('--work-dir', tmp_path / 'boxes', '--show-dir', tmp_path / 'painted')
    printed = evaluate(CONFIG, mask_rcnn[0] / 'epoch_3.pth', *tiles, *outputs)
    assert 'not drawn' not in printed and len(list((tmp_path / 'painted').iterdir())) == 4
    assert metrics_of_test(tmp_path / 'boxes').keys() == metrics_of_validation(mask_rcnn[0]).keys()
    for image in load(tmp_path / 'found.pkl'):
        assert {tuple(mask['size']) for mask in image['pred_instances']['masks']} == {
            image['ori_shape']
        }
    evaluate(UPERNET, upernet[0] / 'iter_24.pth', *tiles, '--work-dir', tmp_path / 'maps')
    assert metrics_of_test(tmp_path / 'maps').keys() == metrics_of_validation(upernet[0]).keys()
    assert all(image['pred_sem_seg'].min() >= 0 for image in load(tmp_path / 'found.pkl'))


@pytest.mark.slow
def test_two_nodes_give_the_metrics_of_the_validation(run, start_test, mask_rcnn, tmp_path):
    """Both nodes are this machine. A fork is the second one."""
    port = forks.free_port()
    checkpoint = mask_rcnn[0] / 'epoch_3.pth'
    outputs = ('--work-dir', tmp_path / 'work', '--show-dir', tmp_path / 'painted')
    address = dict(MASTER_ADDR='127.0.0.1')
    process = dict(RANK='1', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_PORT=port)
    second = start_test(CONFIG, checkpoint, '--launcher', 'pytorch', *outputs, **address, **process)
    nodes = dict(NNODES='2', NODE_RANK='0', PORT=port)
    first = run(*script('dist_test.sh', CONFIG, checkpoint, 1, *outputs), **address, **nodes)
    assert second.wait(60) == 0
    second = second.out.read_text()
    assert '2 processes connected by gloo' in first
    assert 'Epoch(test)' not in second
    assert metrics_of_test(tmp_path / 'work') == metrics_of_validation(mask_rcnn[0])
    assert len(list((tmp_path / 'painted').iterdir())) == 4, 'each node paints its images'


@pytest.mark.slow
def test_detection_merges_boxes_of_views(evaluate, mask_rcnn, tmp_path):
    arguments = (CONFIG, mask_rcnn[0] / 'epoch_3.pth')
    outputs = ('--work-dir', tmp_path / 'work', '--tta', '--out', tmp_path / 'boxes.pkl')
    printed = evaluate(*arguments, *outputs)
    assert printed.count('--tta: mmdet merges only boxes, masks are skipped\n') == 1
    metrics = metrics_of_test(tmp_path / 'work')
    assert metrics['coco/AR@100'] > 0 and 'coco/segm_mAP' not in metrics
    assert all('masks' not in image['pred_instances'] for image in load(tmp_path / 'boxes.pkl'))
