"""Checkpoints: which is found, and that a whole one is there whenever something fails."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import tiny_training
import torch
from mmengine.config import Config

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import (
    SafeCheckpointHook,
    build_runner,
    find_checkpoint,
)
from mmgcvit.engine.hooks import checkpoint as checkpoints
from mmgcvit.engine.resume import is_complete, resume_training
from mmgcvit.errors import UserError
from mmgcvit.files import remove_partial_files, write_atomically
from mmgcvit.weights import read_checkpoint

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('checkpoints') / 'shapes'
    draw_shapes(root, num_train=6, num_val=1, progress=False)
    return root / 'coco' / 'train2017'


@pytest.fixture
def files(tmp_path):
    """Save checkpoints by name, a second apart; the last is also named in last_checkpoint."""

    def save(*names):
        for second, name in enumerate(names):
            torch.save({'weight': torch.ones(1000)}, tmp_path / name)
            os.utime(tmp_path / name, (1000 + second, 1000 + second))
        (tmp_path / 'last_checkpoint').write_text(f'/another/machine/{names[-1]}')
        return tmp_path

    return save


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def test_the_newest_checkpoint_is_found(files, log):
    folder = files('epoch_9.pth', 'epoch_10.pth', 'best_cost_epoch_9.pth', 'other.pth')
    assert find_checkpoint(folder) == folder / 'epoch_10.pth'
    assert find_checkpoint(folder / 'nothing') is None
    assert log == []


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert find_checkpoint(tmp_path) is None


@pytest.mark.parametrize('size', [0, 1, 2000, -1])
def test_a_file_cut_short_is_passed_over_with_a_warning(files, log, size):
    folder = files('iter_8.pth', 'iter_16.pth')
    cut(folder / 'iter_16.pth', size)
    assert find_checkpoint(folder) == folder / 'iter_8.pth'
    assert len(log) == 1 and f'{folder / "iter_16.pth"} is not complete' in log[0]
    cut(folder / 'iter_8.pth', size)
    assert find_checkpoint(folder) is None
    assert len(log) == 3


def test_a_folder_is_no_checkpoint(files, log):
    """As of DeepSpeed, or of FSDP's local state: --resume PATH refuses one as well."""
    folder = files('iter_8.pth')
    (folder / 'iter_16.pth').mkdir()
    assert find_checkpoint(folder) == folder / 'iter_8.pth'
    assert len(log) == 1 and f'{folder / "iter_16.pth"} is not complete' in log[0]


@pytest.mark.parametrize('record', ['', 'epoch_1.pth', 'epoch_7.pth', None])
def test_a_last_checkpoint_that_is_empty_stale_or_missing_misleads_nobody(files, record):
    folder = files('epoch_1.pth', 'epoch_2.pth')
    if record is None:
        (folder / 'last_checkpoint').unlink()
    else:
        (folder / 'last_checkpoint').write_text(record)
    assert find_checkpoint(folder) == folder / 'epoch_2.pth'


def test_files_of_an_older_training_in_the_same_folder_are_not_taken(files):
    folder = files('epoch_11.pth', 'epoch_12.pth', 'epoch_1.pth', 'epoch_2.pth')
    assert find_checkpoint(folder) == folder / 'epoch_2.pth'
    cut(folder / 'epoch_2.pth', 100)
    os.utime(folder / 'epoch_2.pth', (1003, 1003))
    assert find_checkpoint(folder) == folder / 'epoch_1.pth'


def test_a_copied_folder_whose_times_are_mixed_up_is_read_by_its_record(files):
    folder = files('epoch_3.pth', 'epoch_1.pth', 'epoch_2.pth')
    (folder / 'last_checkpoint').write_text('epoch_3.pth')
    assert find_checkpoint(folder) == folder / 'epoch_3.pth'


def test_out_dir_and_file_names_of_the_hook_are_followed(files, tmp_path):
    folder = files('step-4.pth', 'epoch_9.pth')
    hook = {'out_dir': str(tmp_path.parent), 'filename_tmpl': 'step-{}.pth'}
    cfg = Config({'work_dir': f'elsewhere/{tmp_path.name}', 'default_hooks': {'checkpoint': hook}})
    resume_training(cfg)
    assert cfg.load_from == str(folder / 'step-4.pth')
    assert cfg.resume is True


def test_without_a_checkpoint_the_training_starts_anew_from_the_configs_weights(tmp_path, log):
    cfg = Config({'work_dir': str(tmp_path), 'load_from': 'coco.pth'})
    resume_training(cfg)
    assert cfg.resume is False
    assert cfg.load_from == 'coco.pth'
    assert log == [f'no checkpoint in {tmp_path}: training starts from the beginning']


def test_a_given_checkpoint_that_is_cut_or_missing_is_an_error(files):
    folder = files('epoch_1.pth', 'epoch_2.pth')
    cut(folder / 'epoch_2.pth', 100)
    error = r'epoch_2\.pth is not a complete checkpoint: it was truncated'
    with pytest.raises(UserError, match=error):
        resume_training(Config({'work_dir': str(folder)}), str(folder / 'epoch_2.pth'))
    with pytest.raises(UserError, match=r'epoch_5\.pth does not exist'):
        resume_training(Config({'work_dir': str(folder)}), str(folder / 'epoch_5.pth'))


def test_a_kill_while_a_file_is_written_leaves_the_one_before_it(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from mmgcvit.files import write_atomically

path = Path(sys.argv[1])
write_atomically(path, b'before')
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(path, b'after' * 100_000)
"""
    path = tmp_path / 'epoch_1.pth'
    command = [sys.executable, '-c', program, str(path)]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b'before'
    (partial,) = set(tmp_path.iterdir()) - {path}
    assert find_checkpoint(tmp_path) is None and partial.name.startswith('.epoch_1.pth.')
    (tmp_path / '.hidden.pth.notes').touch()
    remove_partial_files(tmp_path, '.pth')
    assert {f.name for f in tmp_path.iterdir()} == {'epoch_1.pth', '.hidden.pth.notes'}


def test_a_link_of_the_name_of_the_unfinished_file_is_not_followed(tmp_path):
    victim, path = tmp_path / 'victim', tmp_path / 'epoch_1.pth'
    victim.write_bytes(b'before')
    partial = tmp_path / f'.epoch_1.pth.{os.getpid()}'
    partial.symlink_to(victim)
    write_atomically(path, b'after')
    assert (victim.read_bytes(), path.read_bytes()) == (b'before', b'after')
    assert not path.is_symlink() and not partial.is_symlink()
    # one that appears in between
    partial.symlink_to(victim)
    with pytest.MonkeyPatch.context() as racing:
        racing.setattr(Path, 'unlink', lambda *_, **__: None)
        with pytest.raises(FileExistsError) as error:
            write_atomically(path, b'again')
    assert error.value.filename == str(partial)
    assert (victim.read_bytes(), path.read_bytes()) == (b'before', b'after')


def test_what_a_kill_left_is_replaced_and_the_umask_holds(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    (tmp_path / f'.epoch_1.pth.{os.getpid()}').write_bytes(b'longer than what is written')
    before = os.umask(0o027)
    try:
        write_atomically(path, b'after')
    finally:
        os.umask(before)
    assert path.read_bytes() == b'after'
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def runner_of(images, work_dir, name, hook=None, **options):
    work_dir.mkdir(exist_ok=True)
    path = tiny_training.config(images, work_dir / name, 'epoch', 0)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({f'default_hooks.checkpoint.{k}': v for k, v in (hook or {}).items()})
    cfg.merge_from_dict(
        {'work_dir': str(work_dir), 'experiment_name': f'{work_dir.name}_{name}', **options}
    )
    return build_runner(cfg)


def logged(folder):
    return '\n'.join(log.read_text() for log in sorted(folder.glob('*/*.log')))


def names(folder):
    return {path.name for path in folder.glob('*.pth')}


def refuse(name, monkeypatch):
    """Have the disk take no file of that name."""

    def write(path, content):
        if path.name == name:
            raise OSError(28, 'No space left on device')
        return write_atomically(path, content)

    monkeypatch.setattr(checkpoints, 'write_atomically', write)


@pytest.mark.parametrize('refused', ['epoch_3.pth', 'best_cost_epoch_3.pth'])
def test_a_full_disk_leaves_the_files_before_it_and_a_clear_error(
    images, tmp_path, monkeypatch, refused
):
    """At most one of each kind is kept: it is there as long as its successor is not complete."""
    refuse(refused, monkeypatch)
    monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', falling_cost())
    runner = runner_of(images, tmp_path, f'full_{refused}', {'max_keep_ckpts': 1})
    with pytest.raises(UserError, match=rf'{refused} could not be written.*No space left'):
        runner.train()
    whole = {'epoch_3.pth' if 'best' in refused else 'epoch_2.pth', 'best_cost_epoch_2.pth'}
    assert names(tmp_path) == whole
    assert all(is_complete(tmp_path / name) for name in whole)


@pytest.mark.parametrize(
    ('refused', 'left'),
    [('last_checkpoint', {'epoch_1.pth'}), ('unfinished_validation', set())],
)
def test_a_full_disk_is_named_for_small_files_too(images, tmp_path, monkeypatch, refused, left):
    refuse(refused, monkeypatch)
    with pytest.raises(UserError, match=rf'{refused} could not be written.*No space left'):
        runner_of(images, tmp_path, f'full_{refused}').train()
    assert names(tmp_path) == left and all(is_complete(tmp_path / name) for name in left)


def falling_cost():
    costs = iter([0.9, 0.8, 0.7, 0.6, 0.5])
    return lambda self, results: {'cost': next(costs)}


def test_what_a_kill_left_to_be_removed_is_removed_by_the_resumed_training(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', falling_cost())
    with monkeypatch.context() as killed:
        killed.setattr(SafeCheckpointHook, '_remove', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner_of(images, tmp_path, 'left1', {'max_keep_ckpts': 1, 'save_best': None}).train()
    assert names(tmp_path) == {'epoch_1.pth', 'epoch_2.pth'}
    write_atomically(tmp_path / '.epoch_2.pth.123', b'cut')
    runner_of(images, tmp_path, 'left2', {'max_keep_ckpts': 1}, resume=True).train()
    assert names(tmp_path) == {'epoch_3.pth', 'best_cost_epoch_3.pth'}
    assert not list(tmp_path.glob('.epoch*'))


def test_the_best_of_whatever_metric_is_kept_and_replaced_after_a_resume(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', falling_cost())
    auto = {'save_best': 'auto'}
    runner_of(images, tmp_path, 'auto1', auto, **{'train_cfg.max_epochs': 2}).train()
    assert names(tmp_path) == {'epoch_1.pth', 'epoch_2.pth', 'best_cost_epoch_2.pth'}
    runner = runner_of(images, tmp_path, 'auto2', auto, resume=True)
    runner.train()
    assert names(tmp_path) == {'epoch_2.pth', 'epoch_3.pth', 'best_cost_epoch_3.pth'}
    assert runner.message_hub.get_info('best_score') == 0.7
    assert runner.message_hub.get_info('best_ckpt') == str(tmp_path / 'best_cost_epoch_3.pth')


def test_a_training_that_goes_on_in_a_copied_folder_leaves_the_original_as_it_is(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', falling_cost())
    original, copied = tmp_path / 'original', tmp_path / 'copied'
    original.mkdir()
    runner_of(images, original, 'original', **{'train_cfg.max_epochs': 1}).train()
    shutil.copytree(original, copied)
    runner_of(images, copied, 'copied', resume=True).train()
    assert names(original) == {'epoch_1.pth', 'best_cost_epoch_1.pth'}
    assert names(copied) == {'epoch_2.pth', 'epoch_3.pth', 'best_cost_epoch_3.pth'}


@pytest.mark.parametrize('moment', ['in', 'before'])
def test_a_validation_that_was_killed_is_caught_up_with(images, tmp_path, monkeypatch, moment):
    """Killed in or before that of the second epoch, which is the best one of all."""
    begun = SafeCheckpointHook.before_val_epoch
    epochs = itertools.count(1)

    def before_val_epoch(self, runner):
        if moment == 'before' and next(epochs) == 2:
            raise KeyboardInterrupt
        begun(self, runner)

    monkeypatch.setattr(SafeCheckpointHook, 'before_val_epoch', before_val_epoch)

    def costs(*values):
        values = iter(values)

        def compute_metrics(self, results):
            if (value := next(values)) is None:
                raise KeyboardInterrupt
            return {'cost': value}

        monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', compute_metrics)

    costs(0.5, None)
    with pytest.raises(KeyboardInterrupt):
        runner_of(images, tmp_path, 'val1').train()
    assert names(tmp_path) == {'epoch_1.pth', 'epoch_2.pth', 'best_cost_epoch_1.pth'}

    costs(0.1, 0.7)
    runner_of(images, tmp_path, 'val2', resume=True).train()
    assert logged(tmp_path).count('was not finished: repeating it now') == 1
    assert names(tmp_path) == {'epoch_2.pth', 'epoch_3.pth', 'best_cost_epoch_2.pth'}
    info = read_checkpoint(tmp_path / 'epoch_2.pth')['message_hub']['runtime_info']
    assert info['best_score'] == 0.1

    costs()
    runner_of(images, tmp_path, 'val3', resume=True).train()
    assert logged(tmp_path).count('was not finished') == 1


@pytest.mark.parametrize('intervals', [None, [(2, 1)]])
def test_a_validation_that_was_about_to_begin_is_marked(images, tmp_path, monkeypatch, intervals):
    """Also where the loop shortens its interval after this epoch, as mmdet's YOLOX does."""

    def killed(self, runner):
        raise KeyboardInterrupt

    monkeypatch.setattr(SafeCheckpointHook, 'before_val_epoch', killed)
    options = {'train_cfg.val_interval': 3 if intervals else 1}
    options['train_cfg.dynamic_intervals'] = intervals
    with pytest.raises(KeyboardInterrupt):
        runner_of(images, tmp_path, f'marked {intervals}', **options).train()
    assert names(tmp_path) == {'epoch_1.pth'}
    assert (tmp_path / 'unfinished_validation').read_text() == '2'


def test_iterations_in_an_epoch_have_no_validation_after_them(images, tmp_path, monkeypatch):
    """Checkpoints of an epoch-based training at each iteration: only the epochs are validated."""
    hook = {'by_epoch': False, 'interval': 1, 'max_keep_ckpts': -1, 'save_best': None}
    runner_of(images, tmp_path, 'inner1', hook, **{'train_cfg.max_epochs': 1}).train()
    validations = []
    monkeypatch.setattr(
        SafeCheckpointHook, 'before_val_epoch', lambda _, runner: validations.append(runner.iter)
    )
    for iteration in (1, 2):
        (tmp_path / 'unfinished_validation').write_text(str(iteration))
        path = tmp_path / f'iter_{iteration}.pth'
        if iteration == 2:  # as it was before its validation
            saved = torch.load(path, weights_only=False)
            saved['meta']['epoch'] = 0
            saved['hooks']['SafeCheckpointHook'][0].update(validated=False, mid_epoch=True)
            saved['hooks']['ExactResumeHook'][0].update(batches=2, images=6)
            torch.save(saved, path)
        runner_of(
            images,
            tmp_path,
            f'inner from {iteration}',
            hook,
            resume=str(path),
            **{'train_cfg.max_epochs': 2},
        ).train()
        assert validations == [2, 4]
        validations.clear()


def test_a_write_that_the_system_refuses_ends_the_tool_and_can_be_gone_on_from(images, tmp_path):
    """tools/train.py under a limit of file sizes below a checkpoint's, after one without it."""
    path = tiny_training.config(images, tmp_path / 'limit', 'iter', 0)
    command = ['tools/train.py', path, '--resume', '--cfg-options']

    def train(iterations, **limit):
        return forks.run(
            *command, f'train_cfg.max_iters={iterations}', out=tmp_path / 'out', **limit
        )

    code, printed = train(4)
    assert code == 0, printed[-3000:]
    code, printed = train(8, file_size=1_000_000)
    assert code == 1
    assert printed.splitlines()[-1].startswith(
        f'error: {tmp_path / "limit" / "iter_8.pth"} could not be written'
    )
    assert find_checkpoint(tmp_path / 'limit') == tmp_path / 'limit' / 'iter_4.pth'


@pytest.mark.parametrize(
    ('options', 'warned'),
    [
        ({}, 0),
        ({'default_hooks.checkpoint.by_epoch': False}, 1),
        ({'optim_wrapper.accumulative_counts': 2}, 0),
        ({'optim_wrapper.accumulative_counts': 3}, 1),
    ],
)
def test_what_cannot_be_exact_is_said(images, tmp_path, options, warned):
    name = f'said{len(options)}{warned}{options.get("optim_wrapper.accumulative_counts")}'
    runner = runner_of(images, tmp_path, name, **options, **{'train_cfg.max_epochs': 1})
    runner.train()
    assert logged(tmp_path).count('will not be exact') == warned


def test_an_argument_that_mmengine_would_miss_only_when_it_saves_is_refused():
    assert checkpoints.SafeCheckpointHook(interval=2, save_begin=1).interval == 2
    with pytest.raises(UserError, match=r'default_hooks\.checkpoint\.intervall: .*mean interval\?'):
        checkpoints.SafeCheckpointHook(intervall=1)


def test_a_metric_of_unknown_rule_is_named_with_its_option():
    with pytest.raises(
        UserError, match=r"default_hooks\.checkpoint\.save_best is 'coco/AP'.*rule="
    ):
        checkpoints.SafeCheckpointHook(save_best='coco/AP')
    checkpoints.SafeCheckpointHook(save_best='coco/AP', rule='greater')
