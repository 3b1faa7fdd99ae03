"""What a failed step leaves behind, and that it fails again in the same way."""

import random
import re

import forks
import numpy as np
import pytest
import torch
from toy import ToyModel, toy_runner

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import failed_step as module
from mmgcvit.engine import record_failed_step
from mmgcvit.engine.failed_step import random_state, read_failed_step, set_random_state
from mmgcvit.engine.replay import replay
from mmgcvit.errors import UserError

SCRIPT = 'tests/data/scripts/failing_step.py'
CONFIGS = 'tests/data/configs'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('failed_step') / 'shapes'
    draw_shapes(root, num_train=8, num_val=1, progress=False)
    return root


def fail(shapes, tmp_path, config, fault, *options, ranks=1, rank=0):
    """Train with a fault in the third step, and return the lines on the screen."""
    _, printed = forks.run(
        *(SCRIPT, f'{CONFIGS}/{config}', tmp_path / 'work', fault, rank, *options),
        **dict(out=tmp_path / 'out', ranks=ranks, SHAPES=str(shapes), timeout=120),
    )
    return printed


def run_again(tmp_path, file, *options):
    code, printed = forks.run(
        *('tools/replay.py', file, '--device', 'cpu', *options), out=tmp_path / 'replayed'
    )
    return code, printed


def losses(printed, head):
    (line,) = re.findall(rf'^{head}: (.*)$', printed, re.M)
    return dict(part.rsplit(' ', 1) for part in line.split(', '))


@pytest.mark.parametrize(
    ('config', 'ranks', 'options'),
    [
        ('mask_rcnn_tiny.py', 1, ()),
        ('upernet_tiny.py', 1, ('optim_wrapper.type=mmgcvit.BFloat16OptimWrapper',)),
        ('upernet_tiny.py', 2, ()),
        pytest.param('mask_rcnn_tiny.py', 2, (), marks=pytest.mark.slow),
    ],
)
def test_a_bad_image_is_written_and_reproduced(shapes, tmp_path, config, ranks, options):
    printed = fail(shapes, tmp_path, config, 'image', *options, ranks=ranks, rank=ranks - 1)
    name = 'failed_step_iter_3' + ('_rank_1' if ranks > 1 else '')
    (file,) = (tmp_path / 'work').glob('failed_step*')  # of the process with the bad image alone
    assert file.name == f'{name}.pth', printed[-3000:]
    assert f'python tools/replay.py {file}' in printed
    content = read_failed_step(file)
    assert content['iteration'] == 3 and content['reason'] == 'loss'
    assert len(content['images']) == 2 and content['versions']['torch'] == torch.__version__
    assert not all(np.isfinite(value) for value in content['losses'].values())
    assert all(torch.isfinite(w).all() for n, w in content['weights'].items() if 'running' not in n)
    code, again = run_again(tmp_path, file)
    assert code == 0 and again.rstrip().endswith('reproduced'), again
    assert 'not reproduced' not in again
    assert f'{content["images"][0]["img_path"]} (id ' in again
    assert len(re.findall('^image: .*, not finite$', again, re.M)) == 1
    assert 'first module whose output is not finite: data_preprocessor' in again
    assert re.search(r'anomaly detection: Function .* returned nan values', again)
    assert losses(again, 'losses') == losses(again, 'losses in the training')


@pytest.mark.parametrize(
    'config', ['mask_rcnn_tiny.py', pytest.param('upernet_tiny.py', marks=pytest.mark.slow)]
)
def test_an_infinite_loss_weight_is_reproduced_with_all_losses(shapes, tmp_path, config):
    """The other losses are finite, and equal: same random numbers, weights and images."""
    head = 'roi_head.bbox_head.loss_cls' if 'rcnn' in config else 'auxiliary_head.loss_decode'
    code = forks.run(
        *(SCRIPT, f'{CONFIGS}/{config}', tmp_path / 'work', 'none', -1),
        f'model.{head}.loss_weight=1e39',
        **dict(out=tmp_path / 'out', SHAPES=str(shapes), timeout=120),
    )[0]
    assert code in (0, 1)
    code, again = run_again(tmp_path, tmp_path / 'work/failed_step_iter_1.pth')
    assert code == 0, again
    before, after = losses(again, 'losses in the training'), losses(again, 'losses')
    assert before == after and sum(value not in ('inf', 'nan') for value in after.values()) > 0
    bad = 'loss_cls' if 'rcnn' in config else 'aux.loss_ce'
    assert re.search(f'^not finite: .*{re.escape(bad)}', again, re.M)
    assert 'first module whose output is not finite: ' + head in again


@pytest.mark.parametrize(
    ('config', 'ranks'),
    [
        ('upernet_tiny.py', 1),
        pytest.param('mask_rcnn_tiny.py', 1, marks=pytest.mark.slow),
        pytest.param('upernet_tiny.py', 2, marks=pytest.mark.slow),
    ],
)
def test_a_label_out_of_range_is_written_and_reproduced(shapes, tmp_path, config, ranks):
    printed = fail(shapes, tmp_path, config, 'truth', ranks=ranks, rank=ranks - 1)
    (file,) = (tmp_path / 'work').glob('failed_step*')
    assert f'python tools/replay.py {file}' in printed and 'IndexError' in printed
    code, again = run_again(tmp_path, file)
    assert code == 0 and again.rstrip().endswith('is out of bounds.\nreproduced'), again


def test_only_the_first_bad_loss_is_written(tmp_path):
    runner = toy_runner(tmp_path, bad=[1, 3])
    runner.train()
    assert [path.name for path in tmp_path.glob('failed*')] == ['failed_step_iter_2.pth']
    content = read_failed_step(tmp_path / 'failed_step_iter_2.pth')
    assert content['images'] == [{'img_path': 'images/1.jpg', 'img_id': 101}]
    assert content['error'] is None and not content['weights_changed']
    before = torch.load(tmp_path / 'iter_1.pth', weights_only=False)['state_dict']
    assert all(torch.equal(before[name], content['weights'][name]) for name in before)


def test_an_update_despite_an_infinite_loss_is_said(tmp_path):
    runner = toy_runner(tmp_path, model=dict(offset=float('inf')))
    with pytest.raises(UserError):
        runner.train()
    assert read_failed_step(tmp_path / 'failed_step_iter_1.pth')['weights_changed']


def crash(monkeypatch, at, error):
    forward = ToyModel.forward
    calls = iter(range(100))

    def failing(self, *args, **kwargs):
        if next(calls) == at:
            raise error
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ToyModel, 'forward', failing)


def test_an_error_after_a_bad_loss_is_written_too(tmp_path, monkeypatch):
    crash(monkeypatch, 5, KeyError('polygons'))
    runner = toy_runner(tmp_path, bad=[1])
    with pytest.raises(KeyError, match='polygons'), record_failed_step(runner):
        runner.train()
    names = sorted(path.name for path in tmp_path.glob('failed*'))
    assert names == ['failed_step_iter_2.pth', 'failed_step_iter_6.pth']
    content = read_failed_step(tmp_path / names[1])
    assert (content['reason'], content['error_type']) == ('error', 'KeyError')
    assert 'polygons' in content['error'] and content['losses'] == {}
    assert content['images'] == [{'img_path': 'images/5.jpg', 'img_id': 105}]


@pytest.mark.parametrize(
    'error', [KeyboardInterrupt(), RuntimeError('[gloo/tcp/pair.cc] Connection closed by peer')]
)
def test_an_interruption_and_the_end_of_another_process_write_nothing(tmp_path, monkeypatch, error):
    crash(monkeypatch, 2, error)
    runner = toy_runner(tmp_path)
    with pytest.raises(type(error)), record_failed_step(runner):
        runner.train()
    assert not list(tmp_path.glob('failed*'))


def test_an_error_outside_of_a_step_writes_nothing(tmp_path):
    runner = toy_runner(tmp_path, bad=[1, 2, 3])
    with pytest.raises(UserError, match='stopped at iteration 4'), record_failed_step(runner):
        runner.train()
    assert [path.name for path in tmp_path.glob('failed*')] == ['failed_step_iter_2.pth']


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch, log):
    def full(path, content):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(module, 'write_atomically', full)
    crash(monkeypatch, 4, KeyError('polygons'))
    runner = toy_runner(tmp_path, bad=[1])
    with pytest.raises(KeyError, match='polygons'), record_failed_step(runner):
        runner.train()
    lines = [line for line in log if line.startswith('the failed step could not be written to')]
    assert len(lines) == 2 and all('No space left on device' in line for line in lines)


def test_weights_that_cannot_be_read_are_left_out(tmp_path, monkeypatch, capsys):
    """After an assertion in a CUDA kernel, nothing on the GPU can be read."""

    def unreadable(model):
        raise RuntimeError('device-side assert triggered')

    monkeypatch.setattr(module, '_weights', unreadable)
    crash(monkeypatch, 4, torch.cuda.OutOfMemoryError('CUDA out of memory'))
    runner = toy_runner(tmp_path)
    with pytest.raises(torch.cuda.OutOfMemoryError), record_failed_step(runner):
        runner.train()
    file = tmp_path / 'failed_step_iter_5.pth'
    content = read_failed_step(file)
    assert content['weights'] is None and content['batch']['inputs'][0] == 1
    with pytest.raises(UserError, match='pass the last checkpoint before the error with --check'):
        replay(file, 'cpu')
    assert replay(file, 'cpu', str(tmp_path / 'iter_4.pth')) is False  # it has enough memory now
    assert capsys.readouterr().out.endswith('not reproduced\n')


def test_random_numbers_go_on_from_a_state():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))

    state = random_state()
    first = draw()
    draw()
    set_random_state(state)
    assert draw() == first
