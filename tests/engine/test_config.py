"""Options of the command line, and the ones that docs/training.md names, in real trainings."""

import itertools
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import toy_config

from mmgcvit.engine import (
    BadLossHook,
    CheckpointFitHook,
    ExactResumeHook,
    ResumedSettingsHook,
    SafeCheckpointHook,
    StopOnSigtermHook,
    UnusedParametersHook,
    build_runner,
    check_checkpoint,
    load_config,
)
from mmgcvit.engine.adaptations import adapt_fsdp, adapt_hooks
from mmgcvit.engine.device import Machine
from mmgcvit.engine.options import parse_value
from mmgcvit.errors import UserError
from mmgcvit.installed import config_path
from mmgcvit.registry import HOOKS, class_of
from mmgcvit.visualization import read_training_log

PAGE = (Path(__file__).parents[2] / 'docs' / 'training.md').read_text()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("steps = [dict(type='A'), dict(type='B', n=[1])]\nhooks = None\nsize = 3\n")
    return path


def test_options_change_elements_and_add_the_next_one(file):
    cfg = load_config(file, options={'steps.1.n': 2, 'steps.2.type': 'C', 'steps.2.k': 5})
    assert cfg.steps == [dict(type='A'), dict(type='B', n=2), dict(type='C', k=5)]
    cfg = load_config(file, options={'hooks.0.type': 'X', 'hooks.1.type': 'Y', 'new.0.a': 1})
    assert cfg.hooks == [dict(type='X'), dict(type='Y')]
    assert cfg.new == [dict(a=1)]


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'steps.4.type': 'C'}, 'Index 4 exceeds the length'),
        ({'size.a': 3}, 'cannot inherit'),
        ({'new.3.type': 'X'}, 'new.3.type: there is no new yet'),
    ],
)
def test_options_that_do_not_fit_are_one_line(file, options, reason):
    with pytest.raises(UserError, match=rf'--cfg-options cannot be merged .*{reason}') as error:
        load_config(file, options=options)
    assert '\n' not in str(error.value) and 'config.py' in str(error.value)


def documented(start):
    """The documented options that begin so, as the command line's parser gives them."""
    (found,) = set(re.findall(rf'--cfg-options ({re.escape(start)}[^`\n]*)', PAGE))
    pairs = (pair.split('=', 1) for pair in shlex.split(found, comments=True))
    return {name: parse_value(value) for name, value in pairs}


def train(tmp_path, start, **settings):
    path = tmp_path / 'toy.py'
    toy_config(tmp_path / 'work', **settings).dump(path)
    runner = build_runner(load_config(path, options=documented(start)))
    runner.train()
    return runner


def checkpoints(runner):
    """The checkpoints of the iterations, from the first on."""
    paths = (f'{runner.work_dir}/iter_{i}.pth' for i in range(1, runner.iter + 1))
    return [torch.load(path, weights_only=False) for path in paths]


def test_ema_as_documented_averages_what_is_validated_and_saved(tmp_path):
    first, second = checkpoints(train(tmp_path, 'custom_hooks.0.type=EMAHook', iterations=2))
    for name, averaged in second['state_dict'].items():
        before, after = (c['ema_state_dict'][f'module.{name}'] for c in (first, second))
        assert not torch.equal(before, after)
        # the average begins with the weights after the first update
        torch.testing.assert_close(averaged, 0.9998 * before + 0.0002 * after)


def test_accumulation_as_documented_updates_after_so_many_batches(tmp_path):
    runner = train(tmp_path, 'optim_wrapper.accumulative_counts', batch=2, iterations=8)
    assert runner.cfg.train_dataloader.batch_size == 1
    weights = [checkpoint['state_dict'] for checkpoint in checkpoints(runner)]
    changed = [
        not torch.equal(a['backbone.weight'], b['backbone.weight'])
        for a, b in itertools.pairwise(weights)
    ]
    assert changed == [False, False, True, False, False, False, True]


def test_tensorboard_as_documented_has_the_losses_that_the_log_has(tmp_path):
    runner = train(tmp_path, 'visualizer.vis_backends', iterations=4, visualizer=VISUALIZER)
    (folder,) = Path(runner.work_dir).glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    losses = [event.value for event in events.Scalars('loss')]
    assert len(losses) == 4
    # the log that other tools read is still written
    assert losses == pytest.approx(list(read_training_log(runner.work_dir).loss.values()))


VISUALIZER = dict(
    type='Visualizer', name='of_test_config', vis_backends=[dict(type='LocalVisBackend')]
)


def test_the_configs_have_as_many_hooks_and_backends_as_the_documented_indices_say():
    for name in (
        'detection/cascade-mask-rcnn_gcvit-xxt_fpn_3x_coco.py',
        'segmentation/upernet_gcvit-xxt_160k_ade20k-512x512.py',
    ):
        cfg = Config.fromfile(Path(__file__).parents[2] / 'configs' / name)
        assert not cfg.get('custom_hooks')
        assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend']


@pytest.mark.parametrize('form', ["'{0}.{2}'", "'{1}.{2}'", '{2}'])
def test_hooks_that_a_config_has_are_recognised_in_each_form(tmp_path, form):
    """By name, by path as in a dumped config, and as classes."""
    ours = [BadLossHook, UnusedParametersHook, StopOnSigtermHook]
    ours += [ResumedSettingsHook, CheckpointFitHook, ExactResumeHook]
    names = [form.format('mmgcvit', 'mmgcvit.engine', hook.__name__) for hook in ours]
    theirs = [form.format('mmengine', 'mmengine.hooks', n) for n in ('EMAHook', 'CheckpointHook')]
    (tmp_path / 'config.py').write_text(
        'from mmengine.hooks import CheckpointHook, EMAHook\n'
        'from mmgcvit.engine import BadLossHook, CheckpointFitHook, ExactResumeHook\n'
        'from mmgcvit.engine import ResumedSettingsHook, StopOnSigtermHook, UnusedParametersHook\n'
        f'custom_hooks = [{", ".join(f"dict(type={name})" for name in [*names, theirs[0]])}]\n'
        f'default_hooks = dict(checkpoint=dict(type={theirs[1]}))\n'
    )
    cfg = Config.fromfile(tmp_path / 'config.py', lazy_import=True)
    adapt_hooks(cfg, Machine('cpu'))
    assert [class_of(hook, HOOKS) for hook in cfg.custom_hooks] == [*ours, EMAHook]
    assert class_of(cfg.default_hooks.checkpoint, HOOKS) is SafeCheckpointHook
    assert Config.fromstring(cfg.pretty_text, '.py').custom_hooks

    cfg.merge_from_dict({'strategy.type': 'FSDPStrategy', 'launcher': 'pytorch'})
    with pytest.raises(UserError, match='FSDPStrategy and EMAHook cannot be combined'):
        adapt_fsdp(cfg, Machine('cuda'))


def test_a_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / 'train.log').write_text('a line')
    with pytest.raises(UserError, match=r'train\.log cannot be read as a config'):
        load_config(tmp_path / 'train.log')


def test_folders_and_swapped_files_are_named(tmp_path):
    for name in ('config.py', 'epoch_1.pth', 'epoch_2.pth'):
        (tmp_path / name).write_text('')
    os.utime(tmp_path / 'epoch_1.pth', (0, 0))
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'epoch_2.pth'
    wanted = 'pass the config first and the checkpoint second'
    for function, path, message in (
        (load_config, tmp_path, f'is a folder: pass a file in it, such as {config}'),
        (check_checkpoint, str(tmp_path), f'is a folder: pass a file in it, such as {checkpoint}'),
        (load_config, checkpoint, f'the config {checkpoint} is a checkpoint: {wanted}'),
        (check_checkpoint, str(config), f'the checkpoint {config} is a config: {wanted}'),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            function(path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'empty is a folder: pass the path of a \.pth file'):
        check_checkpoint(str(tmp_path / 'empty'))


def test_a_copied_config_without_its_bases_names_the_remedy(tmp_path):
    (tmp_path / 'config.py').write_text("_base_ = ['../_base_/adamw.py']\n")
    with pytest.raises(UserError, match=r'copied loses its bases\. Write the absolute path'):
        load_config(tmp_path / 'config.py')
    (tmp_path / 'config.py').write_text("_base_ = ['mmdet::lost/lost.py']\n")
    with pytest.raises(UserError, match='does not exist') as error:
        load_config(tmp_path / 'config.py')
    assert 'loses its bases' not in str(error.value)


@pytest.mark.parametrize('below', ['', 'run/1'])
def test_a_file_in_the_place_of_the_work_dir_is_named(tmp_path, below):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UserError, match=r'file.* is a file, and a folder is needed: pass another'):
        build_runner(toy_config(tmp_path / 'file' / below))
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize(
    ('text', 'place', 'reason'),
    [
        ('x = 1\na = = 3\n', 'config.py:2', 'SyntaxError'),
        ('x = 1\n\na = b\n', 'config.py:3', "name 'b' is not defined"),
        ("_base_ = './lost.py'\n", 'config.py', 'lost.py'),
        ("_base_ = 'broken.py'\n", 'broken.py:1', 'SyntaxError'),
        ("_base_ = 'mmdet::lost/lost.py'\n", 'config.py', 'lost/lost.py" does not exist'),
        ("_base_ = 'mmnothing::a/b.py'\n", 'config.py', 'mmnothing'),
        ("_base_ = 'mmdet::lost.py'\n", 'config.py', 'mmdet::'),
        ('from mmgcvit import Nothing\nmodel = dict(type=Nothing)\n', 'config.py', 'Nothing'),
        ("custom_imports = dict(imports=['no_such_module'])\n", 'config.py', 'no_such_module'),
    ],
)
def test_whatever_a_config_fails_with_is_one_line_with_its_file(tmp_path, text, place, reason):
    (tmp_path / 'broken.py').write_text('a = (\n')
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / 'config.py')
    found = str(error.value)
    assert '\n' not in found and place in found and reason in found
    assert found.startswith(f'{tmp_path / "config.py"} cannot be read as a config')


def test_a_config_with_another_name_now_names_it_in_one_line(tmp_path, log, recwarn):
    (tmp_path / 'new_name.py').write_text('a = 3\n')
    (tmp_path / 'old_name.py').write_text(
        "_base_ = './new_name.py'\n_deprecation_ = dict(expected='configs/new_name.py')\n"
    )
    (tmp_path / 'mine.py').write_text("_base_ = './old_name.py'\nb = 4\n")
    line = (
        'old_name.py has been renamed to configs/new_name.py; the old name will be removed in '
        'version 0.3'
    )
    for name in ('old_name', 'mine'):
        cfg = load_config(tmp_path / f'{name}.py')
        assert cfg.a == 3 and cfg.work_dir == f'work_dirs/{name}'
        assert len(log) == 1 and log.pop().endswith(line)
    assert not [w for w in recwarn if 'deprecated in the future' in str(w.message)]
    load_config(tmp_path / 'new_name.py')
    assert not log


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('detection/cascade_gcvit_q.py', r'\(did you mean detection/cascade_gcvit_\w+\.py\?\)$'),
        ('cascade_gcvit_q.py', r'\(did you mean (?!.*_base_).*gcvit\S+\.py\?\)$'),
        ('Zebra', r', for example configs/detection/mask_rcnn_gcvit_shapes\.py$'),
    ],
)
def test_a_config_that_does_not_exist_is_answered_by_the_closest_name(name, hint):
    with pytest.raises(UserError, match=hint):
        load_config(name)


def test_other_warnings_of_a_config_are_kept(tmp_path):
    (tmp_path / 'config.py').write_text("__import__('warnings').warn('mind the gap')\n")
    with pytest.warns(UserWarning, match='mind the gap'):
        load_config(tmp_path / 'config.py')


def test_pure_python_configs_without_a_scope_load(tmp_path):
    (tmp_path / 'config.py').write_text(
        'from mmgcvit import GCViT\n'
        'default_scope = None\n'
        'model = dict(type=GCViT, arch="tiny")\n'
        'train_cfg = dict(max_epochs=3)\n'
    )
    cfg = load_config(tmp_path / 'config.py', options={'train_cfg.max_epochs': 4})
    assert class_of(cfg.model, HOOKS).__name__ == 'GCViT'
    assert cfg.default_scope is None and cfg.train_cfg.max_epochs == 4
    with pytest.raises(UserError, match=r'max_epochs changes nothing.*train_cfg\.max_epochs'):
        load_config(tmp_path / 'config.py', options={'max_epochs': 4})


def test_a_packaged_config_as_base_is_as_the_config_itself(tmp_path):
    """By its name in our tools, and by its path in any: without a scope of its own."""
    name = 'detection/mask_rcnn_gcvit_shapes.py'
    direct = load_config(config_path(name), tmp_path)
    for base in (repr(f'mmgcvit::{name}'), f'__import__("mmgcvit").config_path({name!r})'):
        (tmp_path / 'config.py').write_text(f'_base_ = {base}\nmax_epochs = 3\n')
        inherited = load_config(tmp_path / 'config.py', tmp_path)
        assert inherited.pop('max_epochs') == 3
        inherited.max_epochs = direct.max_epochs
        assert inherited.to_dict() == direct.to_dict()
    assert Config.fromfile(tmp_path / 'config.py').model == direct.model


def test_a_base_that_the_package_lacks_names_a_close_one(tmp_path):
    (tmp_path / 'config.py').write_text("_base_ = 'mmgcvit::detection/mask_rcnn_gcvit_shape.py'\n")
    with pytest.raises(UserError, match=r'did you mean detection/mask_rcnn_gcvit_shapes\.py'):
        load_config(tmp_path / 'config.py')
