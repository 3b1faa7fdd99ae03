"""What is compared: tasks, backbones, seeds and the config of each training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...engine import load_config
from ...errors import UserError, did_you_mean
from ...task import DETECTION, SEGMENTATION
from ..building import build_untrained

CONFIGS = Path('configs/comparison')
METHODS = {DETECTION.name: 'mask-rcnn', SEGMENTATION.name: 'upernet'}
BACKBONES = {'gcvit': 'GC ViT', 'swin': 'Swin', 'convnext': 'ConvNeXt'}
VALIDATIONS = 10  # of a training whose number of iterations is not the config's
TOLERANCE = 0.02
"""Largest relative difference between the numbers of parameters of two backbones."""


@dataclass(frozen=True)
class Metric:
    """A metric of the validation.

    Attributes:
        key: Its name in the log.
        name: Its name in tables and figures.
        scale: Factor that makes it a percentage.
    """

    key: str
    name: str
    scale: float


METRICS = {
    DETECTION.name: (
        Metric('coco/bbox_mAP', 'box AP', 100.0),
        Metric('coco/segm_mAP', 'mask AP', 100.0),
    ),
    SEGMENTATION.name: (Metric('mIoU', 'mIoU', 1.0),),
}


@dataclass(frozen=True)
class Training:
    """One training of the comparison.

    Attributes:
        out: Folder of the comparison.
        task: 'detection' or 'segmentation'.
        backbone: One of ``BACKBONES``.
        seed: Seed of the weights and of the order and augmentation of the images.
    """

    out: Path
    task: str
    backbone: str
    seed: int

    @property
    def work_dir(self) -> Path:
        """Folder of checkpoints and logs."""
        return self.out / self.task / self.backbone / f'seed{self.seed}'

    @property
    def config(self) -> Path:
        """The complete config, written when the training begins."""
        return self.work_dir / 'config.py'

    def __str__(self) -> str:
        return f'{self.task}, {BACKBONES[self.backbone]}, seed {self.seed}'


@dataclass(frozen=True)
class Plan:
    """The trainings of a comparison.

    Attributes:
        out: Folder of the comparison.
        tasks: Some of ``METHODS``.
        backbones: Some of ``BACKBONES``.
        seeds: Number of seeds, counted from 0.
        iterations: Iterations of each training, or None for the config's.
        options: Settings that override every config, by dotted names.
    """

    out: Path
    tasks: Sequence[str] = tuple(METHODS)
    backbones: Sequence[str] = tuple(BACKBONES)
    seeds: int = 3
    iterations: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, names, known in (
            ('--tasks', self.tasks, METHODS),
            ('--backbones', self.backbones, BACKBONES),
        ):
            for name in names:
                if name not in known:
                    raise UserError(
                        f'{option} {name} is not known{did_you_mean(name, known)}: choose from '
                        f'{", ".join(known)}'
                    )
        for option, value in (('--seeds', self.seeds), ('--iterations', self.iterations)):
            if value is not None and value < 1:
                raise UserError(f'{option} {value} is not allowed: use an integer of at least 1')

    def trainings(self) -> list[Training]:
        """Return all trainings: first those of the first seed, so that all curves begin early."""
        return [
            Training(self.out, task, backbone, seed)
            for seed in range(self.seeds)
            for task in dict.fromkeys(self.tasks)
            for backbone in dict.fromkeys(self.backbones)
        ]

    def configs(self) -> dict[tuple[str, str], Config]:
        """Return the config of each task and backbone, without seed and work dir."""
        options = _schedule(self.iterations) if self.iterations is not None else {}
        options |= self.options
        found = {}
        for task in self.tasks:
            for backbone in self.backbones:
                path = CONFIGS / f'{METHODS[task]}_{backbone}_shapes.py'
                found[task, backbone] = load_config(path, options=options)
                found[task, backbone].pop('work_dir')
        return found


def _schedule(iterations: int) -> dict[str, Any]:
    interval = max(1, iterations // VALIDATIONS)
    return {
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': interval,
        'default_hooks.checkpoint.interval': interval,
        # the warm-up has the same share of a training as in the config
        'param_scheduler.0.end': max(1, iterations * 8 // 100),
        'param_scheduler.1.end': iterations,
    }


def require_equal_parameters(configs: Mapping[tuple[str, str], Config]) -> dict[str, int]:
    """Check that the backbones have equal numbers of parameters, within 2 %.

    Args:
        configs: Config of each task and backbone.

    Returns:
        Maps backbone → number of its parameters.

    Raises:
        UserError: If they differ by more, or a backbone is not the same for all tasks.
    """
    params: dict[str, int] = {}
    for (task, backbone), cfg in configs.items():
        model = build_untrained(cfg).backbone
        count = sum(p.numel() for p in model.parameters())
        if params.setdefault(backbone, count) != count:
            raise UserError(
                f'{backbone} has {count:,} parameters for {task}, but {params[backbone]:,} for '
                f'another task: use one network, see {CONFIGS}/_base_/backbones.py'
            )
    low, high = min(params.values()), max(params.values())
    if high > (1 + TOLERANCE) * low:
        counts = ', '.join(f'{name} {count:,}' for name, count in params.items())
        raise UserError(
            f'the backbones have different numbers of parameters ({counts}): differences of at '
            f'most {100 * TOLERANCE:g} % are allowed; change the widths in '
            f'{CONFIGS}/_base_/backbones.py'
        )
    return params


def require_same_config(training: Training, cfg: Config) -> None:
    """Check that a training which has begun earlier had the same config.

    Raises:
        UserError: If it had another one: its curve would be a mixture.
    """
    before, now = training.config.read_text().splitlines(), cfg.pretty_text.splitlines()
    if before != now:
        earlier = [line.strip() for line in before if line not in now]
        changed = [line.strip() for line in now if line not in before]
        raise UserError(
            f'{training.work_dir} was trained with other settings ({_first(earlier)}, now '
            f'{_first(changed)}): use the same options as before, or another --out'
        )


def _first(lines: Sequence[str]) -> str:
    return lines[0][:80] if lines else 'nothing'
