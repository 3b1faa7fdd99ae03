"""The steps of a training, from its data to its test, on a few samples."""

import contextlib
import copy
import errno
import gc
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import LOOPS
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import UserError, counted, describe
from ...registry import class_of, set_default_scope
from ...weights import register_checkpoint_loaders
from ..adaptations import Adaptation, adapt_resume, adapt_test
from ..check_data import Problem, check_data, find_evaluators
from ..device import Machine, choose_device
from ..hooks import SafeCheckpointHook, UnusedParametersHook
from ..known_errors import known_error, location
from ..launch import start_processes
from ..options import accumulative_counts
from ..runner import build_runner
from .prediction import (
    Measured,
    peak_memory,
    predict_disk,
    predict_memory,
    predict_time,
    proposals,
)
from .samples import SHARED, call, limit, load, some_items, training_items, worst_items
from .steps import FewSteps
from .validation import BATCHES, NOTHING_DETECTED, all_scores, validate

SPLITS = ('train', 'val', 'test')
ITEMS = 12  # per split
UPDATES_ON_CPU, UPDATES_ON_GPU = 2, 8
SHOWN = 8  # metrics
OK, NOTE, FAILED, SKIPPED = '✔', '!', '✘', '-'
# settings of evaluators and hooks that are paths of output files
OUTPUTS = ('outfile_prefix', 'output_dir', 'out_file_path', 'out_dir', 'results_path')


class _Note(Exception):
    """Ends a step that works, with something that the user should know."""


class _Skip(Exception):
    """Ends a step that cannot run."""


def rehearse(
    cfg: Config,
    *options: Adaptation,
    tta: Adaptation | None = None,
    paint: Callable[[str], Hook] | None = None,
    screen: TextIO | None = None,
) -> int:
    """Rehearse the training of a config, and print one line per step.

    Nothing of the user's is written: runs have a temporary work dir, without visualization backends
    such as Weights & Biases. With several processes, all run and the first one prints.

    Args:
        cfg: Config of the training. It is not changed.
        *options: Adaptations of the training, such as ``adapt_amp``.
        tta: Adaptation for test-time augmentation.
        paint: Hook that saves images with predictions in a folder.
        screen: Stream to print to, by default the standard output.

    Returns:
        Number of failed steps.
    """
    # StopOnSigtermHook would end a training, and not the rehearsal
    before = signal.signal(signal.SIGTERM, _interrupt)
    machine = Machine(device := choose_device(), start_processes(cfg, device))
    register_checkpoint_loaders()
    folder = [tempfile.mkdtemp(prefix='mmgcvit_rehearsal_') if is_main_process() else '']
    broadcast_object_list(folder)
    path = Path(folder[0])
    failed = 0
    try:
        with _output_in(path / f'process_{get_rank()}.log', screen) as screen:
            failed = _Rehearsal(cfg, options, machine, path, tta, paint, screen).run()
            if failed and is_main_process():
                kept = Path(tempfile.gettempdir()) / f'{path.name}.log'
                shutil.copy(path / 'process_0.log', kept)
                print(f'output of the libraries, with tracebacks: {kept}', file=screen)
    finally:
        SHARED.clear()
        if is_main_process():
            shutil.rmtree(path, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    return failed


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as Ctrl-C, so that the temporary folder is removed."""
    raise KeyboardInterrupt


class _Rehearsal:
    """The steps and the state that they share."""

    def __init__(
        self,
        cfg: Config,
        options: Sequence[Adaptation],
        machine: Machine,
        folder: Path,
        tta: Adaptation | None,
        paint: Callable[[str], Hook] | None,
        screen: TextIO,
    ) -> None:
        self.cfg = copy.deepcopy(cfg)
        self.options = options
        self.machine = machine
        self.folder = folder
        self.tta = tta
        self.paint = paint
        self.screen = screen
        self.loaders: dict[str, DataLoader] = {}
        self.worst: dict[str, dict[str, int]] = {}
        self.runner: Any = None
        # the first steps on a GPU also load kernels, so more of them are needed to predict the time
        self.updates = UPDATES_ON_GPU if machine.device == 'cuda' else UPDATES_ON_CPU
        self.accumulated = accumulative_counts(self.cfg)
        self.hook = FewSteps(self.updates * self.accumulated)
        self.training_error: BaseException | None = None
        self.checkpoint: Path | None = None
        self.peak = 0
        # not the default group, in which a failed step may leave a collective pending
        self.group = None
        if get_world_size() > 1:
            self.group = torch.distributed.new_group(timeout=timedelta(minutes=5), backend='gloo')

    def run(self) -> int:
        """Run all steps, print their outcomes, and return the number of failed ones."""
        steps = (self.data, self.model, self.training, self.save_and_resume)
        steps = (*steps, self.validation, self.test, self.prediction)
        names = ('data', 'model', 'training', 'checkpoint', 'validation', 'test', 'prediction')
        marks: dict[str, str] = {}
        start = time.perf_counter()
        for number, (name, step) in enumerate(zip(names, steps, strict=True), 1):
            title = f'{number} {name:<11}'
            if self.screen.isatty():
                print(f'… {title}', end='\r', file=self.screen, flush=True)
            mark, text = self._agree(*self._outcome(step))
            marks[name] = mark
            print(f'{mark} {title} {text}', file=self.screen, flush=True)
        failed = sum(mark == FAILED for mark in marks.values())
        outcome = f'{counted(failed, "step") if failed else "no step"} failed'
        seconds = time.perf_counter() - start
        print(f'rehearsed in {seconds:.0f} s: {outcome}', file=self.screen, flush=True)
        return failed

    def _outcome(self, step: Callable[[], str]) -> tuple[str, str]:
        try:
            return OK, step()
        except _Skip as reason:
            return SKIPPED, f'skipped: {reason}'
        except _Note as note:
            return NOTE, str(note)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            return FAILED, self._explain(error)

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, torch.cuda.OutOfMemoryError) or 'allocate memory' in str(error):
            return f'out of memory ({describe(error, 120)}). {proposals(self.cfg, self.machine)}'
        if (full := _full_disk(error)) is not None:
            folder = tempfile.gettempdir()
            return f'{full}: free some space in {folder}, or set TMPDIR to another folder'
        return known_error(error) or (
            f'{describe(error)} ({location(error)}): correct the part of the config that it names'
        )

    def _agree(self, mark: str, text: str) -> tuple[str, str]:
        """Return the outcome of the first process that failed, or else of the first one."""
        if self.group is None:
            return mark, text
        outcomes: list[Any] = [None] * get_world_size()
        try:
            torch.distributed.all_gather_object(outcomes, (mark, text), group=self.group)
        except RuntimeError as error:  # the others wait for this process within a step
            raise UserError(f'process {get_rank()}: {text}') from error
        failing = [rank for rank, (other, _) in enumerate(outcomes) if other == FAILED]
        if not failing:
            return outcomes[0]
        mark, text = outcomes[failing[0]]
        return mark, text if failing[0] == 0 else f'process {failing[0]}: {text}'

    # the steps

    def data(self) -> str:
        """Build the datasets, and load a few items of each through their pipelines."""
        set_default_scope(self.cfg.get('default_scope', 'mmengine'))
        texts: list[str] = []
        problems = self._checked() if is_main_process() else []
        warnings = [problem.text for problem in problems if not problem.stops]
        stopping = [problem for problem in problems if problem.stops]
        errors = [problem.text for problem in stopping]
        explained = {split for problem in stopping for split in problem.splits}
        for split in SPLITS:
            try:
                texts += self._load(split)
            except Exception as error:
                traceback.print_exc()
                if split not in explained:
                    errors.append(self._explain(error))
        if errors:
            raise UserError(_listed([*errors, *warnings]))
        if warnings:
            raise _Note(_listed([', '.join(texts), *warnings]))
        return ', '.join(texts)

    def _checked(self) -> list[Problem]:
        """Return the problems that the data check finds."""
        try:
            return check_data(self.cfg, samples=ITEMS, fast=True).problems
        except UserError as error:
            return [Problem(str(error))]
        except Exception as error:  # the items may load nevertheless
            traceback.print_exc()
            return [Problem(f'the data could not be checked ({describe(error)})', stops=False)]

    def _load(self, split: str) -> Iterator[str]:
        option = f'{split}_dataloader'
        config = copy.deepcopy(self.cfg.get(option))
        if not config:
            return
        before = SPLITS[: SPLITS.index(split)]
        same = next((s for s in before if self.cfg.get(f'{s}_dataloader') == config), None)
        if same is not None and same not in self.loaders:
            return  # reported for the other split
        if same is not None:
            self.loaders[split], self.worst[split] = self.loaders[same], self.worst[same]
            SHARED[split] = SHARED[same]
            yield f'{split} = {same}'
            return
        loader = call(lambda: Runner.build_dataloader(config, seed=0), f'{option} cannot be built')
        dataset = loader.dataset
        if len(dataset) == 0:
            raise UserError(
                f'{option} has no images: check data_root, ann_file, data_prefix and '
                f'metainfo.classes of {option}.dataset, and its filter_cfg'
            )
        if _length(loader) == 0:
            raise UserError(
                f'{option} has {counted(len(dataset), "image")}, but no complete batch for each '
                f'process: set a smaller {option}.batch_size, or {option}.drop_last=False'
            )
        worst = worst_items(dataset)
        indices = some_items(len(dataset), worst, ITEMS)
        if is_main_process():
            load(loader, indices, option)
        SHARED[split], self.loaders[split], self.worst[split] = dataset, loader, worst
        yield f'{split} {counted(len(dataset), "image")} ({len(indices)} loaded)'

    def model(self) -> str:
        """Build the model and its weights, as the training does, and train a few updates."""
        needed = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
        if missing := [name for name in needed if not self.cfg.get(name)]:
            raise UserError(
                f'a training needs {", ".join(needed)}, and the config has no '
                f'{", ".join(missing)}: add them'
            )
        # while the config still has the work dir of the training
        adapt_resume(self.cfg, self.machine)
        cfg = self._config('train')
        loop = class_of(cfg.train_cfg, LOOPS, cfg.get('default_scope'))
        if loop is not None and not issubclass(loop, EpochBasedTrainLoop | IterBasedTrainLoop):
            self.training_error = _Skip(f'train_cfg.type={loop.__name__} cannot be shortened')
        self.runner = build_runner(cfg, *self.options)
        if 'train' not in self.loaders or ('val' not in self.loaders and cfg.get('val_dataloader')):
            self.training_error = _Skip('needs step 1')
            return f'{self._size()}; weights not loaded (needs step 1)'
        if self.training_error is None:
            self.runner.register_hook(self.hook)
            try:
                self.runner.train()
            except (Exception, SystemExit) as error:  # SystemExit: another process reports it
                if not self.hook.started:
                    self.runner = None
                    raise
                self.training_error = error
            self.peak = peak_memory(self.machine)
        return f'{self._size()}, weights: {_weights(self.runner.cfg)}'

    def _size(self) -> str:
        model = self.runner.model  # a config if FlexibleRunner has not built it
        parameters: Iterable[Tensor] = getattr(model, 'parameters', list)()
        return f'{sum(p.numel() for p in parameters) / 1e6:.1f} M parameters'

    def training(self) -> str:
        """Check the updates that the previous step has trained."""
        if self.runner is None:
            raise _Skip('needs step 2')
        if self.training_error is not None:
            raise self.training_error
        hook = self.hook
        if len(hook.times) <= hook.batches:
            raise UserError(
                f'the training to resume is complete or was stopped early ({self.runner.iter} '
                'iterations): nothing is left to train. Set a larger train_cfg.max_epochs or '
                'train_cfg.max_iters, or a larger patience of EarlyStoppingHook'
            )
        if not all(abs(loss) < float('inf') for loss in hook.losses):
            raise UserError(
                f'the losses are not finite ({", ".join(map(str, hook.losses))}): lower '
                'optim_wrapper.optimizer.lr, or set optim_wrapper.clip_grad.max_norm'
            )
        observers = [h for h in self.runner.hooks if isinstance(h, UnusedParametersHook)]
        reports = [observer.report for observer in observers if observer.unused]
        if reports and not self._finds_unused():
            raise UserError(reports[0])
        checked = any(observer.checked for observer in observers)
        gradients = 'gradients not checked'
        if checked:
            gradients = f'{"not " if reports else ""}every parameter has a gradient'
        losses = ', '.join(f'{loss:.3g}' for loss in hook.losses)
        updates = counted(math.ceil(hook.batches / self.accumulated), 'update')
        text = f'{updates}, loss {losses}; {gradients}; {self._worst()}'
        if reports:
            raise _Note(_listed([text, reports[0]]))
        return text

    def _finds_unused(self) -> bool:
        """Return whether the config allows parameters without a gradient."""
        name = 'find_unused_parameters'
        return bool((self.cfg.get('model_wrapper_cfg') or self.cfg).get(name))

    def _worst(self) -> str:
        items = self.worst.get('train') or {}
        texts = []
        for name, index in items.items():
            info = SHARED['train'].get_data_info(index)
            size = f'{info["width"]}×{info["height"]}'
            instances = counted(len(info.get('instances', ())), 'instance')
            file = Path(str(info.get('img_path', f'item {index}'))).name
            texts.append(f'{name} {file} ({size}, {instances})')
        return '; '.join(texts) or 'evenly spaced images'

    def save_and_resume(self) -> str:
        """Resume from the checkpoint, and compare what the resumed training would save."""
        self._needs_training()
        hooks = [hook for hook in self.runner.hooks if isinstance(hook, CheckpointHook)]
        if not hooks or hooks[0].last_ckpt is None:
            raise _Note('the training saves no checkpoints: there is no CheckpointHook')
        if not Path(hooks[0].last_ckpt).is_file():
            raise _Skip('needs step 3')
        self.checkpoint = Path(hooks[0].last_ckpt)
        size = f'{self.checkpoint.stat().st_size / 1e6:.1f} MB'
        if not (hooks[0].save_optimizer and hooks[0].save_param_scheduler):
            raise _Note(
                f'{size}; without save_optimizer and save_param_scheduler in '
                'default_hooks.checkpoint, --resume does not work'
            )
        cfg = self._config('resumed', workers=False)
        cfg.resume, cfg.load_from = str(self.checkpoint), None
        resumed = build_runner(cfg, *self.options)
        resumed.register_hook(FewSteps(0))
        resumed.train()
        again = self.folder / 'resumed' / 'again.pth'
        resumed.save_checkpoint(
            str(again.parent),
            again.name,
            save_optimizer=True,
            save_param_scheduler=True,
            by_epoch=hooks[0].by_epoch,
        )
        if is_main_process():
            saved, found = (_state(path) for path in (self.checkpoint, again))
            if (difference := _difference(saved, found)) is not None:
                raise UserError(
                    f'after resuming, {difference} differs from the checkpoint, so the training '
                    'would not continue in the same way. Look for a hook or a module that changes '
                    'it when it is built or loaded'
                )
        return f'{size}, saved, resumed and equal'

    def validation(self) -> str:
        """Validate a few batches, and check the names of the metrics."""
        self._needs_training()
        loop = self.runner.val_loop
        if loop is None:
            raise _Note('not rehearsed: the config has no val_dataloader')
        self._collect_in_folder(loop)
        with all_scores(self.runner.model):
            metrics = validate(loop)
        batches = counted(len(self.hook.validation_times) - 1, 'batch', 'batches')
        if not metrics:
            raise _Note(
                f'{batches}, but {NOTHING_DETECTED}: the names that save_best, early '
                'stopping and schedules use were not checked'
            )
        more = f' and {counted(len(metrics) - SHOWN, "other")}' if len(metrics) > SHOWN else ''
        return f'{batches}; metrics: {", ".join([*metrics][:SHOWN])}{more}'

    def test(self) -> str:
        """Test the checkpoint on one image, with pictures, and with test-time augmentation."""
        if not self.cfg.get('test_dataloader'):
            raise _Note('not rehearsed: the config has no test_dataloader')
        self._needs_training()
        if self.checkpoint is None:
            raise _Skip('needs step 4')
        if 'test' not in self.loaders:
            raise _Skip('needs step 1')
        hooks = [self.paint(str(self.folder / 'shown'))] if self.paint else []
        self._test('test', [adapt_test], hooks)
        done = '1 image' + (' with --show-dir' if self.paint else '')
        if self.tta is None:
            return done
        probe = self._config('tta', shared=False)
        try:
            self.tta(probe, self.machine)
        except UserError as reason:
            raise _Note(f'{done}; no --tta: {reason}') from reason
        self._test('tta', [adapt_test, self.tta], [], shared=False)
        return f'{done} and --tta'

    def _test(
        self, name: str, options: Sequence[Adaptation], hooks: Sequence[Hook], shared: bool = True
    ) -> None:
        cfg = self._config(name, shared=shared, workers=False)
        cfg.resume, cfg.load_from = False, str(self.checkpoint)
        runner = build_runner(cfg, *options)
        for hook in hooks:
            runner.register_hook(hook)
        self._collect_in_folder(runner.test_loop)
        try:
            validate(runner.test_loop, runner.test, 'test')
        except UserError as error:
            option = {'tta': ' --tta'}.get(name, '')
            if _raised_by(error, hooks):
                option = ' --show-dir'
            place = ''
            if name == 'tta' and self.cfg.get('tta_pipeline'):
                # often inherited, and not changed with the other pipelines
                place = (
                    '; its pipeline is tta_pipeline of the config: correct it there, or set '
                    '--cfg-options tta_pipeline=None if you do not use --tta'
                )
            raise UserError(f'tools/test.py{option}: {error}{place}') from error
        finally:
            del runner
            gc.collect()

    def prediction(self) -> str:
        """Predict time, memory and disk of the training."""
        self._needs_training()
        hook, runner = self.hook, self.runner
        measured_steps = max(hook.batches // 2, 1)  # the first updates are slower
        times = hook.validation_times
        measured = Measured(
            per_iteration=(hook.times[-1] - hook.times[-1 - measured_steps]) / measured_steps,
            # of the last batch, because the first one is slower
            per_image=(times[-1] - times[-2]) / self._last_validated() if times[1:] else 0.0,
            peak=self.peak,
            checkpoint=self.checkpoint.stat().st_size if self.checkpoint else 0,
        )
        per_epoch = _length(self.loaders['train'])
        to_validate = len(self.loaders['val'].sampler) if 'val' in self.loaders else 0
        duration = predict_time(runner, hook.start, per_epoch, to_validate, measured)
        memory, too_much = predict_memory(self.cfg, self.machine, measured.peak)
        # not of the rehearsal's config, whose folders are temporary
        hooks = (self.cfg.get('default_hooks') or {}).get('checkpoint') or {}
        folder = hooks.get('out_dir') or self.cfg.work_dir
        disk, full = predict_disk(runner, folder, per_epoch, measured.checkpoint)
        text = '; '.join(part for part in (duration, memory, disk) if part)
        if full:
            raise UserError(_listed([text, full, *([too_much] if too_much else [])]))
        if too_much:
            raise _Note(_listed([text, too_much]))
        return text

    def _last_validated(self) -> int:
        """Return the number of images in the last batch of the rehearsed validation."""
        size = self.cfg.val_dataloader.get('batch_size') or 1
        number, _ = self._items('val', len(self.loaders['val'].dataset), size)
        return (number - 1) % size + 1

    def _needs_training(self) -> None:
        if self.runner is None:
            raise _Skip('needs step 2')
        if len(self.hook.times) <= self.hook.batches:
            raise _Skip('needs step 3')

    def _collect_in_folder(self, loop: Any) -> None:
        """Keep the files through which processes exchange results out of the current folder."""
        for metric in loop.evaluator.metrics:
            if metric.collect_device == 'cpu':
                metric.collect_dir = str(self.folder / 'collected')

    def _config(self, name: str, shared: bool = True, workers: bool = True) -> Config:
        """Return the config of one of the runs: few items, and no files but in the work dir."""
        cfg = copy.deepcopy(self.cfg)
        cfg.work_dir = str(self.folder / name)
        cfg.experiment_name = f'{self.folder.name}_{name}'
        if cfg.get('visualizer'):
            cfg.visualizer['vis_backends'] = []
        hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
        evaluators = (part for name in ('val', 'test') for _, part in find_evaluators(cfg, name))
        for part in (*hooks, *evaluators):
            for key in OUTPUTS:
                if part and part.get(key) is not None:
                    part[key] = str(self.folder / 'outputs')
        for split, loader in self.loaders.items():
            config = cfg[f'{split}_dataloader']
            if shared:
                config['dataset'] = ConfigDict(type='mmgcvit.shared_dataset', name=split)
            if not workers or split != 'train':
                config.update(num_workers=0, persistent_workers=False)
                config.pop('prefetch_factor', None)
            size = config.get('batch_size') or 1
            number, indices = self._items(split, len(loader.dataset), size)
            limit(config, number, indices, cfg.get('default_scope'))
        return cfg

    def _items(self, split: str, length: int, size: int) -> tuple[int, list[int]]:
        """Return the number of items per process, and the items of all processes."""
        worst, processes = self.worst[split], get_world_size()
        if split == 'train':
            per_update = self.accumulated * size
            chosen = training_items(length, worst, per_update, processes, self.updates)
            return per_update * self.updates, chosen
        number = min(BATCHES * size, length) if split == 'val' else 1
        return number, some_items(length, worst, number)[:number] * processes


def _length(loader: DataLoader) -> int:
    """Return the number of batches, which an infinite sampler does not limit."""
    try:
        return len(loader)
    except TypeError:
        return 1


def _weights(cfg: Config) -> str:
    """Return where the weights of a training come from."""
    if cfg.get('load_from'):
        return f'{"resumed from " if cfg.get("resume") else ""}{cfg.load_from}'
    pretrained = ((cfg.model.get('backbone') or {}).get('init_cfg') or {}).get('checkpoint')
    return str(pretrained or 'random')


def _full_disk(error: BaseException | None) -> OSError | None:
    """Return the exception or the cause of it that a full disk has raised, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return error
        error = error.__cause__ or error.__context__
    return None


def _raised_by(error: BaseException | None, hooks: Sequence[Hook]) -> bool:
    """Return whether an exception or one of its causes was raised in a method of a hook."""
    while error is not None:
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        if any(frame.f_locals.get('self') is hook for frame in frames for hook in hooks):
            return True
        error = error.__cause__
    return False


def _state(path: Path) -> dict[str, Any]:
    """Return what a training reads from a checkpoint."""
    content = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    # describes the checkpoint itself
    (content.get('hooks') or {}).pop(SafeCheckpointHook.__name__, None)
    return {key: value for key, value in content.items() if key not in ('meta', 'message_hub')}


def _difference(first: Any, second: Any, name: str = '') -> str | None:
    """Return the name of the first value in which two states differ, or None."""
    if isinstance(first, Tensor):
        same = isinstance(second, Tensor) and first.shape == second.shape
        return None if same and torch.equal(first, second) else name
    if type(first) is not type(second):
        return name
    if isinstance(first, Mapping):
        if first.keys() != second.keys():
            return f'{name} ({", ".join(map(str, first.keys() ^ second.keys()))})'
        pairs = [(key, first[key], second[key]) for key in first]
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            return name
        pairs = [(i, *pair) for i, pair in enumerate(zip(first, second, strict=True))]
    else:
        return None if first == second or first != first else name
    differences = (_difference(a, b, f'{name}.{key}' if name else str(key)) for key, a, b in pairs)
    return next((found for found in differences if found is not None), None)


def _listed(texts: Sequence[str]) -> str:
    """Join texts, one per line."""
    return '\n    '.join(text for text in texts if text)


@contextlib.contextmanager
def _output_in(path: Path, screen: TextIO | None) -> Iterator[TextIO]:
    """Redirect the output of this process and of its workers to a file.

    Yields:
        Stream to print to: ``screen`` or the standard output in the first process, nothing in the
        others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    loggers = set(MMLogger._instance_dict)
    with open(path, 'w', buffering=1) as log, open(os.devnull, 'w') as nothing:
        own = os.fdopen(os.dup(1), 'w', encoding='utf-8') if screen is None else screen
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield own if is_main_process() else nothing
        finally:
            # new loggers write to this file, and mmengine has no method that removes loggers
            for name in set(MMLogger._instance_dict) - loggers:
                for handler in MMLogger._instance_dict.pop(name).handlers:
                    handler.close()
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in zip((1, 2), saved, strict=True):
                os.dup2(original, number)
                os.close(original)
            if screen is None:
                own.close()
