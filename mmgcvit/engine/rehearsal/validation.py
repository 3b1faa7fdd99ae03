"""The validation of a few batches, and the metrics that hooks and schedules use."""

import contextlib
import copy
import difflib
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, FlexibleRunner, Runner
from torch import nn

from ...errors import UserError, counted, describe
from ...sampling import evenly
from ..failed_step import random_state, set_random_state
from ..hooks.resumed_settings import is_finished
from ..known_errors import location, package_error
from ..options import walk
from .samples import limit

BATCHES = 2
NOTHING_DETECTED = (
    'the model detected nothing in these images, so the evaluator returned no metrics'
)


class RehearseValidation(Hook):
    """Validate at most two batches before training, and check the names of the metrics.

    A training would otherwise stop only after its first epoch, and at every ``--resume``, if the
    evaluator fails or if ``save_best`` names a metric that it does not compute. Weights, random
    states, the evaluator and the recorded metrics are the same afterwards. Other hooks are not
    called.
    """

    priority = 'NORMAL'  # before CheckpointHook, which may repeat an interrupted validation

    def before_train(self, runner: Runner) -> None:
        """Run the batches.

        Raises:
            UserError: If the validation fails, or a metric is missing.
        """
        if runner.val_loop is None:
            _say('not rehearsed: the validation, because the config has no val_dataloader')
            return
        loop = runner.train_loop
        if is_finished(loop):
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if loop.val_begin > (loop.max_epochs if by_epoch else loop.max_iters):
            _say('not rehearsed: the validation, because train_cfg.val_begin is after the end')
            return
        start = time.perf_counter()
        try:
            with _unchanged(runner), _silent(runner), all_scores(runner.model):
                few, number = _few_batches(runner)
                metrics = validate(few)
            if metrics:
                require_names(runner, metrics)
        except UserError as error:
            raise UserError(f'{error}. --no-rehearsal trains without this check') from error
        seconds = time.perf_counter() - start
        if metrics:
            batches = counted(number, 'batch', 'batches')
            _say(f'rehearsed the validation with {batches} ({seconds:.1f} s)')
        else:
            _say(f'not rehearsed: the names of the metrics, because {NOTHING_DETECTED}')


def _say(line: str) -> None:
    if is_main_process():
        print_log(line, logger='current')


def _few_batches(runner: Runner) -> tuple[BaseLoop, int]:
    """Copy the validation loop of a runner, limited to a few batches and without hooks.

    Returns:
        The loop, and the number of batches. No image is repeated to fill them.
    """
    loop = copy.copy(runner.val_loop)
    config = copy.deepcopy(runner.cfg.val_dataloader)
    dataset = loop.dataloader.dataset
    size = config.get('batch_size') or 1
    number = min(BATCHES * size, len(dataset))
    indices = evenly(len(dataset), number) * get_world_size()
    limit(config, number, indices, runner.cfg.get('default_scope'))
    config.update(dataset=dataset, num_workers=0, persistent_workers=False)
    config.pop('prefetch_factor', None)
    loop.dataloader = Runner.build_dataloader(config)
    loop.evaluator = _copy_of(loop.evaluator)
    loop.val_loss = {}
    loop._runner = _WithoutHooks(runner)
    return loop, math.ceil(number / size)


class _WithoutHooks:
    """A runner that calls no hooks."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def call_hook(self, name: str, **arguments: Any) -> None:
        """Do nothing."""


def validate(
    loop: BaseLoop, run: Callable[[], dict] | None = None, what: str = 'val'
) -> dict[str, float]:
    """Run a loop of a validation or a test.

    Args:
        loop: The loop.
        run: Runs it, by default its own method.
        what: 'val' or 'test', for messages.

    Returns:
        The metrics, the same in all processes.

    Raises:
        UserError: If it fails, in all processes. Otherwise those that do not fail would wait.
    """
    evaluator = loop.evaluator
    evaluate, computes = evaluator.evaluate, False

    def exchange(text: str | None) -> None:
        texts = [text for text in all_gather_object(text) if text]
        if texts:
            raise UserError(texts[0])

    def evaluate_guarded(size: int) -> dict[str, float]:
        nonlocal computes
        computes = True
        exchange(None)  # all processes have processed their batches
        with _guarded(evaluator) as failures:
            metrics = evaluate(size)
        exchange(explain(failures[0], what) if failures else None)
        return metrics

    evaluator.evaluate = evaluate_guarded
    try:
        return (run or loop.run)()
    except Exception as error:
        if not computes:
            exchange(explain(error, what))
        if isinstance(error, UserError):
            raise
        raise UserError(explain(error, what)) from error
    finally:
        del evaluator.evaluate


def explain(error: BaseException, what: str) -> str:
    """Return why a validation ('val') or a test ('test') fails, and what to do."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyError | AttributeError) and 'gt_' in str(error):
        remedy = (
            'the pipeline packs no ground truth: add LoadAnnotations, and the keys that the '
            f'evaluator needs, to {what}_dataloader.dataset.pipeline'
        )
    else:
        remedy = f'correct {what}_dataloader, {what}_evaluator or the model'
    name = 'validation' if what == 'val' else 'test'
    if known := package_error(error):
        return f'the {name} fails: {known}'
    return f'the {name} fails ({describe(error)}, {location(error)}): {remedy}'


def require_names(runner: Runner, metrics: Mapping[str, float]) -> None:
    """Check that the metrics include those that hooks and schedules use.

    Args:
        runner: Runner that trains.
        metrics: Metrics of its validation.

    Raises:
        UserError: If a metric is missing, or its rule is unknown.
    """
    texts = []
    for option, name in _awaited(runner):
        if name not in metrics:
            close = difflib.get_close_matches(name, metrics, 1)
            texts.append(
                f'{option} is {name!r}, which the validation does not compute: set it to one of '
                f'{", ".join(metrics)}{f" (for example {option}={close[0]})" if close else ""}, or '
                'change val_evaluator'
            )
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and 'auto' in (hook.save_best or ()):
            first = next(iter(metrics))
            try:
                # of a copy, because the real one uses the first validation of the training
                copy.copy(hook)._init_rule(hook.rules, [first])
            except ValueError:
                texts.append(
                    f"default_hooks.checkpoint.save_best is 'auto', which means {first!r}, and "
                    'mmengine does not know whether higher is better: set '
                    'default_hooks.checkpoint.rule=greater or less'
                )
    if texts:
        raise UserError('; '.join(texts))


def _awaited(runner: Runner) -> Iterator[tuple[str, str]]:
    """Yield option and name of each metric that hooks and schedules use."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            names = [name for name in hook.save_best or () if name != 'auto']
            yield from (('default_hooks.checkpoint.save_best', name) for name in names)
        elif isinstance(hook, EarlyStoppingHook):
            yield _option(runner, 'monitor', hook.monitor, 'custom_hooks'), hook.monitor
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, Mapping):  # of several optimizers
        schedulers = [scheduler for group in schedulers.values() for scheduler in group]
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False) and scheduler.by_epoch:
            name = scheduler.monitor
            yield _option(runner, 'monitor', name, 'param_scheduler'), name


def _option(runner: Runner, key: str, value: str, part: str) -> str:
    """Return the dotted name of a setting in the config."""
    settings = walk({part: runner.cfg.get(part)})
    found = (name for name, other in settings if name.endswith(f'.{key}') and other == value)
    return next(found, f'{part}.{key}')


@contextlib.contextmanager
def all_scores(model: nn.Module) -> Iterator[None]:
    """Set the score thresholds of a model to 0 for a while.

    A model that was not trained scores below the usual thresholds. mmdet computes no metrics
    without a detection.
    """
    changed = []
    for module in model.modules():
        settings = walk({'test_cfg': getattr(module, 'test_cfg', None)})
        changed += [
            (node, node['score_thr'])
            for _, node in settings
            if isinstance(node, dict) and isinstance(node.get('score_thr'), float | int)
        ]
    for node, _ in changed:
        node['score_thr'] = 0.0
    try:
        yield
    finally:
        for node, value in changed:
            node['score_thr'] = value


@contextlib.contextmanager
def _guarded(evaluator: Evaluator) -> Iterator[list[Exception]]:
    """Collect the exceptions of an evaluator's ``compute_metrics``, and return no metrics then.

    Only the first process computes metrics. If it stopped, the others would wait for them.
    """
    failures: list[Exception] = []

    def guard(compute: Callable[[list], dict]) -> Callable[[list], dict]:
        def compute_or_collect(results: list) -> dict:
            try:
                return compute(results)
            except Exception as error:
                failures.append(error)
                return {}

        return compute_or_collect

    for metric in evaluator.metrics:
        metric.compute_metrics = guard(metric.compute_metrics)
    try:
        yield failures
    finally:
        for metric in evaluator.metrics:
            del metric.compute_metrics


def _copy_of(evaluator: Evaluator) -> Evaluator:
    """Copy an evaluator without the annotations, which take seconds and which it only reads."""
    annotations = [
        value
        for metric in evaluator.metrics
        for value in vars(metric).values()
        if any(base.__name__ == 'COCO' for base in type(value).__mro__)
    ]
    return copy.deepcopy(evaluator, {id(value): value for value in annotations})


@contextlib.contextmanager
def _unchanged(runner: Runner) -> Iterator[None]:
    """Restore random states and the modes of all modules."""
    modes = [(module, module.training) for module in runner.model.modules()]
    state = random_state()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_random_state(state)


@contextlib.contextmanager
def _silent(runner: Runner | FlexibleRunner) -> Iterator[None]:
    """Keep metrics of two batches out of the log and off the screen."""
    levels = [(handler, handler.level) for handler in runner.logger.handlers]
    for handler, level in levels:
        handler.setLevel(max(level, logging.ERROR))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)
