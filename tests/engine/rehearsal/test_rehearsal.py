"""A rehearsal names the step in which a training would fail, and writes nothing of the user's."""

import errno
import io
import logging
import multiprocessing.util
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import forks
import pytest
import tiny_training
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from tiers import in_shards
from torch import nn

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import adapt_amp, build_runner, rehearse
from mmgcvit.engine.hooks import SafeCheckpointHook

CONFIGS = forks.ROOT / 'tests' / 'data' / 'configs'
STEPS = ('data', 'model', 'training', 'checkpoint', 'validation', 'test', 'prediction')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('rehearsal') / 'shapes'
    draw_shapes(root, num_train=12, num_val=4, progress=False)
    return root


@pytest.fixture(autouse=True)
def temporary(monkeypatch):
    """A temporary folder for the rehearsals in this process."""
    # not below tmp_path: the sockets of data workers need short paths
    multiprocessing.util.get_temp_dir()  # of tests/forks.py, which needs it after this test
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr('tempfile.tempdir', folder)
        yield Path(folder)


@MODELS.register_module(force=True)
class OutOfMemory(BaseModel):
    """Its forward pass needs more memory than there is."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, image, label, mode='tensor'):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')


@HOOKS.register_module(force=True)
class Careless(SafeCheckpointHook):
    """Adds what no resumed training has to the checkpoint."""

    count = 0

    def before_save_checkpoint(self, runner, checkpoint):
        Careless.count += 1
        if 'optimizer' in checkpoint:  # the best one has none
            checkpoint['optimizer']['param_groups'][0]['lr'] += Careless.count


@HOOKS.register_module(force=True)
class Interrupted(Hook):
    """Sends SIGTERM to the training in an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, *_, **__):
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


class Rehearsed(dict):
    """Mark and text of each step, by its name."""

    def __init__(self, printed, failed):
        printed = printed.partition('\nrehearsed in ')[0]
        lines = re.split(r'\n(?=[✔!✘-] \d )', printed)
        found = [re.match(r'([✔!✘-]) \d (\w+) +(.*)', line, re.S) for line in lines]
        super().__init__({line[2]: (line[1], line[3]) for line in found if line})
        assert tuple(self) == STEPS, printed
        self.failed = [name for name, (mark, _) in self.items() if mark == '✘']
        assert len(self.failed) == failed, printed


@pytest.fixture
def tiny(shapes, tmp_path):
    """Rehearse the training of tiny_training, with some settings changed."""

    def tiny(loop='epoch', *options, workers=0, **settings):
        path = tiny_training.config(
            shapes / 'coco' / 'train2017', tmp_path / 'work', loop, workers, **settings
        )
        cfg = Config.fromfile(path)
        if cfg.val_dataloader:
            cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
            cfg.test_cfg = {}
        screen = io.StringIO()
        failed = rehearse(cfg, *options, screen=screen)
        return Rehearsed(screen.getvalue(), failed)

    return tiny


def hook(**settings):
    return dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', **settings)))


@pytest.mark.parametrize(
    ('loop', 'workers', 'settings'),
    [
        ('epoch', 0, {}),
        (
            'iter',
            2,
            dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3)),
        ),
        ('epoch', 0, dict(custom_hooks=[dict(type='EMAHook', begin_epoch=3)])),
        ('iter', 0, hook(by_epoch=False, interval=-1)),
        # a warm-up that is longer than the rehearsal, and a schedule by epoch
        (
            'epoch',
            0,
            dict(
                param_scheduler=[
                    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=9),
                    dict(type='MultiStepLR', by_epoch=True, begin=0, end=3, milestones=[1, 2]),
                ]
            ),
        ),
    ],
)
def test_trainings_that_work(tiny, loop, workers, settings):
    found = tiny(loop, workers=workers, **settings)
    assert not found.failed
    assert found['data'][1].startswith('train 12 images (12 loaded), val 12 images (12 loaded)')
    assert 'every parameter has a gradient' in found['training'][1]
    assert found['checkpoint'][1].endswith('MB, saved, resumed and equal')
    assert found['validation'][1] == '2 batches; metrics: cost'
    assert '12 iterations × ' in found['prediction'][1]


@pytest.mark.parametrize(('batch_size', 'batches'), [(9, '2 batches'), (20, '1 batch')])
def test_validation_of_a_small_set_is_predicted_without_repeated_images(
    tiny, shapes, tmp_path, batch_size, batches
):
    read = tmp_path / 'read'
    loader = dict(
        dataset=dict(
            type='TinyImages',
            folder=str(shapes / 'coco' / 'train2017'),
            augment=False,
            reads=str(read),
        ),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        batch_size=batch_size,
    )
    found = tiny(val_dataloader=loader)
    assert not found.failed
    assert found['validation'][1].startswith(f'{batches}; ')
    assert re.search(r' × 12 images × \d', found['prediction'][1])
    # checked, loaded in step 1, validated; and one image is tested
    assert len(read.read_text().split()) == 12 + 12 + 1


@pytest.mark.parametrize(
    ('iterations', 'accumulated', 'updates'), [(1, 1, 1), (5, 3, 2), (3, 2, 2)]
)
def test_training_of_few_iterations(tiny, iterations, accumulated, updates):
    """Fewer than the rehearsal's, which is not a training that is complete."""
    optimizer = dict(type='SGD', lr=0.1)
    found = tiny(
        'iter',
        train_cfg=dict(max_iters=iterations, val_interval=1),
        optim_wrapper=dict(optimizer=optimizer, accumulative_counts=accumulated),
    )
    assert not found.failed
    assert found['training'][1].startswith(f'{updates} update')
    noun = 'iteration' if iterations == 1 else 'iterations'
    assert f' {iterations} {noun} × ' in found['prediction'][1]


SAVE_BEST = dict(type='CheckpointHook', interval=1, rule='less')


@pytest.mark.parametrize(
    ('settings', 'step', 'text'),
    [
        (dict(model=dict(type='TinyClasifier')), 'model', 'TinyClasifier'),
        (dict(train_cfg=None), 'model', 'the config has no train_cfg: add'),
        (dict(load_from='missing.pth'), 'model', 'missing.pth'),
        (dict(model=dict(type='OutOfMemory')), 'training',
         'train_dataloader.batch_size=1 with optim_wrapper.accumulative_counts=2'),
        (dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e30))), 'training',
         'not finite'),
        (dict(custom_hooks=[dict(type='Careless')]), 'checkpoint', 'optimizer.param_groups.0.lr'),
        (dict(default_hooks=dict(checkpoint=dict(SAVE_BEST, save_best='mIoU'))), 'validation',
         "save_best is 'mIoU', which the validation does not compute"),
        (dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='accuracy')]), 'validation',
         "custom_hooks.0.monitor is 'accuracy'"),
        (dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='loss')]), 'validation',
         "param_scheduler.0.monitor is 'loss'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_their_step(tiny, settings, step, text):
    found = tiny(**settings)
    assert found.failed == [step]
    assert text in found[step][1]


def dataset(folder, **settings):
    return (
        dict(
            dataset=dict(type='TinyImages', folder=str(folder), augment=False),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        )
        | settings
    )


def test_data_that_fail_do_not_hide_the_model(tiny, tmp_path):
    found = tiny(train_dataloader=dataset(tmp_path, batch_size=2))
    assert found.failed == ['data']
    assert 'train_dataloader' in found['data'][1]
    assert found['model'][0] == '✔' and 'needs step 1' in found['model'][1]
    for name in STEPS[2:]:
        assert found[name] == ('-', f'skipped: needs step {1 if name == "training" else 3}')


def test_too_few_images_for_a_batch(tiny, shapes):
    few = dataset(shapes / 'coco' / 'train2017', batch_size=13, drop_last=True)
    found = tiny(train_dataloader=few)
    assert 'train_dataloader.batch_size, or train_dataloader.drop_last=False' in found['data'][1]


def test_what_the_config_does_not_have_is_a_note(tiny):
    nothing = dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg'))
    found = tiny(**nothing, **hook(interval=1, save_optimizer=False, save_best=None))
    assert not found.failed
    assert found['checkpoint'][0] == '!' and 'save_optimizer' in found['checkpoint'][1]
    assert found['validation'] == ('!', 'not rehearsed: the config has no val_dataloader')


def files(folder):
    # the log of a training that runs in this process goes on
    paths = (path for path in Path(folder).rglob('*') if path.suffix != '.log')
    return {path: path.stat().st_mtime_ns for path in paths}


def test_nothing_of_the_users_is_written(tiny, tmp_path, monkeypatch, shapes, temporary):
    """Also of a training that is resumed, and of hooks and evaluators with folders of their own."""
    images, own = shapes / 'coco' / 'train2017', tmp_path / 'own'
    settings = hook(interval=1, out_dir=str(own), save_best='cost', rule='less')
    cfg = Config.fromfile(tiny_training.config(images, tmp_path / 'work', 'epoch', 0, **settings))
    cfg.experiment_name = tmp_path.name
    cfg.train_cfg.max_epochs = 1
    build_runner(cfg).train()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    before = files(tmp_path / 'work') | files(own)
    found = tiny(resume='auto', **settings)
    assert not found.failed
    assert f'resumed from {own / "work" / "epoch_1.pth"}' in found['model'][1]
    assert '8 iterations × ' in found['prediction'][1] and '2 validations' in found['prediction'][1]
    assert files(tmp_path / 'work') | files(own) == before
    assert not [*files(tmp_path / 'here'), *temporary.glob('mmgcvit*')]


def test_complete_training_cannot_be_rehearsed_further(tiny, tmp_path, shapes):
    cfg = Config.fromfile(
        tiny_training.config(shapes / 'coco' / 'train2017', tmp_path / 'work', 'epoch', 0)
    )
    cfg.experiment_name = tmp_path.name
    build_runner(cfg).train()
    found = tiny(resume='auto')
    assert found.failed == ['training'] and 'is complete' in found['training'][1]


def test_full_temporary_folder_is_a_failure_with_its_remedy(tiny, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr('mmgcvit.engine.hooks.checkpoint.write_atomically', full)
    found = tiny(**hook(interval=1, save_best=None))
    assert found.failed == ['training', 'validation']
    assert all('or set TMPDIR to another folder' in found[name][1] for name in found.failed)
    assert found['checkpoint'] == ('-', 'skipped: needs step 3')
    assert found['test'] == ('-', 'skipped: needs step 4')


def test_work_dir_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / 'file').touch()
    found = tiny(**hook(interval=1, save_best=None, out_dir=str(tmp_path / 'file' / 'below')))
    assert found.failed == ['prediction']
    assert f'{tmp_path / "file"} is not a folder' in found['prediction'][1]


@pytest.mark.parametrize(('interval', 'kept'), [(2, 2), (3, 1), (9, 1)])
def test_last_checkpoint_counts_as_kept(tiny, interval, kept):
    found = tiny(**hook(interval=interval, save_best=None))
    assert f'({kept} kept, 0 best and 1 being written' in found['prediction'][1]


def test_training_that_was_interrupted_in_its_last_epoch(tiny, tmp_path, shapes):
    """Its checkpoint skips more images than the rehearsal trains on."""
    cfg = Config.fromfile(
        tiny_training.config(shapes / 'coco' / 'train2017', tmp_path / 'work', 'epoch', 0)
    )
    cfg.experiment_name = tmp_path.name
    cfg.custom_hooks = [dict(type='Interrupted', iteration=11)]  # of 12
    with pytest.raises(SystemExit):
        build_runner(cfg).train()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the process would have ended
    found = tiny(resume='auto')
    assert not found.failed
    assert found['training'][1].startswith('2 updates')


def test_training_that_was_stopped_early_cannot_be_rehearsed_further(tiny, tmp_path, shapes):
    early = dict(type='EarlyStoppingHook', monitor='cost', rule='less', min_delta=1e3, patience=1)
    settings = dict(custom_hooks=[early])
    images = shapes / 'coco' / 'train2017'
    cfg = Config.fromfile(tiny_training.config(images, tmp_path / 'work', 'epoch', 0, **settings))
    cfg.experiment_name = tmp_path.name
    build_runner(cfg).train()
    found = tiny(resume='auto', **settings)
    assert found.failed == ['training'] and 'was stopped early' in found['training'][1]


def test_output_of_libraries_is_kept_if_a_step_fails(tiny, shapes, tmp_path, capfd):
    path = tiny_training.config(shapes / 'coco' / 'train2017', tmp_path / 'work', 'epoch', 0)
    cfg = Config.fromfile(path)
    cfg.model.type = 'TinyClasifier'
    screen = io.StringIO()
    assert rehearse(cfg, screen=screen) == 1
    log = Path(re.search(r'tracebacks: (\S+)', screen.getvalue())[1])
    assert 'Traceback (most recent call last)' in log.read_text()
    printed = capfd.readouterr()
    assert 'Traceback' not in printed.out + printed.err


def test_what_is_logged_afterwards_does_not_go_to_files_that_are_closed(tiny, capfd):
    loggers = dict(MMLogger._instance_dict)
    tiny()
    assert loggers == MMLogger._instance_dict
    print_log('afterwards', 'current', logging.WARNING)
    printed = capfd.readouterr()
    assert 'Logging error' not in printed.err


def test_options_of_the_training_are_used(tiny):
    found = tiny('epoch', adapt_amp, optim_wrapper=dict(
        type='BFloat16OptimWrapper', optimizer=dict(type='SGD', lr=0.1)
    ))  # fmt: skip
    assert found.failed == ['model'] and '--amp needs' in found['model'][1]


@pytest.fixture
def tool(shapes, tmp_path):
    """Run tools/rehearse.py on drawn shapes."""

    def tool(name, *settings, ranks=1, cwd=forks.ROOT):
        arguments = ['--cfg-options', *settings] if settings else []
        launcher = ['--launcher', 'pytorch'] if ranks > 1 else []
        code, printed = forks.run(
            *(forks.ROOT / 'tools' / 'rehearse.py', CONFIGS / name, *launcher, *arguments),
            out=tmp_path / 'printed',
            cwd=cwd,
            ranks=ranks,
            SHAPES=str(shapes),
        )
        found = re.search(r'rehearsed in \d+ s: (\w+) steps? failed', printed)
        assert found, printed
        failed = 0 if found[1] == 'no' else int(found[1])
        if log := re.search(r'tracebacks: (\S+)', printed):
            Path(log[1]).unlink()
        assert code == (1 if failed else 0)
        return Rehearsed(printed, failed)

    return tool


def test_the_option_without_a_rehearsal_is_refused(load_tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['rehearse.py', 'config.py', '--no-rehearsal'])
    with pytest.raises(SystemExit) as end:
        load_tool('rehearse').main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert '--no-rehearsal is an option of tools/train.py: remove it, or run train.py' in error


COCO = '{shapes}/coco/annotations/instances_train2017.json'
# what draws no boxes and no masks, what gives no metrics, what does not fit
MISTAKES = [
    ('mask_rcnn_tiny.py', ['default_hooks.checkpoint.save_best=coco/segm_mAP',
                           'val_evaluator.metric=bbox'], 'validation', 'save_best'),
    ('mask_rcnn_tiny.py', [f'val_evaluator.ann_file={COCO}'], 'data', 'val_evaluator.ann_file'),
    ('mask_rcnn_tiny.py', ['model.roi_head.mask_head.num_classes=2',
                           'model.roi_head.mask_head.class_agnostic=False'], 'data',
     'mask_head.num_classes'),
    ('mask_rcnn_tiny.py', ['model.neck.in_channels=[16,32,65]'], 'training', '65'),
    ('mask_rcnn_tiny.py', ['train_dataloader.dataset.pipeline.1.with_mask=False'], 'training',
     'masks'),
    ('mask_rcnn_tiny.py', ['test_evaluator.metric=segments'], 'test', 'segments'),
    ('upernet_tiny.py', ['val_dataloader.dataset.pipeline=[{type: LoadImageFromFile}, '
                         '{type: PackSegInputs}]'], 'validation', 'packs no ground truth'),
    ('upernet_tiny.py', ['val_evaluator.iou_metrics=[mDice]',
                         'default_hooks.checkpoint.save_best=mIoU'], 'validation', 'mDice'),
    ('upernet_tiny.py', ['train_dataloader.dataset.pipeline.2.scale=[192]'], 'data', 'Resize'),
    ('upernet_tiny.py', ['tta_pipeline.0.imdecode_backend=tifffile'], 'test',
     'its pipeline is tta_pipeline'),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'settings', 'step', 'text'), MISTAKES)
def test_mistakes_in_configs_of_detectors_and_segmentors(tool, shapes, name, settings, step, text):
    found = tool(name, *(setting.format(shapes=shapes) if COCO in setting else setting
                         for setting in settings))  # fmt: skip
    assert step in found.failed
    assert text in found[step][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'place'),
    [('mask_rcnn_tiny.py', 'data_prefix.img'), ('upernet_tiny.py', 'data_prefix.img_path')],
)
def test_missing_folder_is_one_error_per_dataset(tool, name, place):
    settings = [f'{split}_dataloader.dataset.{place}=/nowhere' for split in ('val', 'test')]
    found = tool(name, *settings)
    assert 'data' in found.failed
    text = found['data'][1]
    assert text.count('val, test: ') == 1 and text.count('/nowhere') == 1
    assert 'FileNotFoundError' not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['mask_rcnn_tiny.py', 'upernet_tiny.py', pytest.param('fsdp_tiny.py', marks=in_shards)]
)
def test_several_processes_rehearse_together(tool, name, tmp_path):
    here = tmp_path / 'here'
    here.mkdir()
    found = tool(name, ranks=2, cwd=here)
    assert not found.failed
    assert found['test'][1].endswith('1 image with --show-dir and --tta')
    if name == 'mask_rcnn_tiny.py':
        for item in ('largest image', 'most instances', 'smallest image'):
            text = rf'{item} \d+\.jpg \(\d+×\d+, \d+ instances?\)'
            assert re.search(text, found['training'][1])
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('ranks', [1, 2])
def test_parameters_without_a_gradient_are_a_failure(tool, ranks):
    settings = ['model.neck.start_level=1']
    found = tool('mask_rcnn_tiny.py', *settings, ranks=ranks)
    assert 'training' in found.failed
    assert 'out_indices=(1,2)' in found['training'][1]
    assert found['checkpoint'][0] == ('-' if ranks > 1 else '✔')
    settings.append('find_unused_parameters=True')
    found = tool('mask_rcnn_tiny.py', *settings, ranks=ranks)
    assert not found.failed
    assert found['training'][0] == '!' and 'out_indices=(1,2)' in found['training'][1]
