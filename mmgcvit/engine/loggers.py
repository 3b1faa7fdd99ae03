"""Loggers of losses and metrics (``--log-to``): TensorBoard, Weights & Biases and MLflow."""

import importlib.util
import logging
import os
import posixpath
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.visualization import MLflowVisBackend, WandbVisBackend

from ..errors import UserError, describe
from ..files import write_atomically
from ..registry import VISBACKENDS, class_of

LOGGERS = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'mmgcvit.ResumableWandbBackend',
    'mlflow': 'mmgcvit.ResumableMLflowBackend',
}


@VISBACKENDS.register_module()
class ResumableWandbBackend(WandbVisBackend):
    """mmengine's backend for Weights & Biases, which also continues the run of a resumed training.

    It respects the environment variables of wandb, such as ``WANDB_PROJECT`` and ``WANDB_MODE``.

    Args:
        save_dir: Folder of wandb's files.
        work_dir: Work dir of the training. It names the run, and stores its id.
        resume: Whether to continue the run with the stored id.
    """

    def __init__(self, save_dir: str, work_dir: str, resume: bool = False) -> None:
        super().__init__(save_dir)
        self._id = _StoredId(work_dir, 'wandb', resume)

    def _init_env(self) -> None:
        self._init_kwargs = dict(
            name=self._id.run_name,
            id=self._id.read(),
            resume='allow' if self._id.read() else None,
            allow_val_change=True,  # settings may differ in a resumed training
        )
        _connect(
            'wandb',
            super()._init_env,
            'run "wandb login", or set WANDB_MODE=offline to write files only, which '
            '"wandb sync" uploads',
        )
        self._id.write(self._wandb.run.id)


@VISBACKENDS.register_module()
class ResumableMLflowBackend(MLflowVisBackend):
    """mmengine's backend for MLflow, which also continues the run of a resumed training.

    It respects ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME``. Without the former, runs are
    stored in ``mlflow.db`` in the work dir, because MLflow no longer supports the folders that
    mmengine configures.

    Args:
        save_dir: Not used.
        work_dir: Work dir of the training. It names the run, and stores its id.
        resume: Whether to continue the run with the stored id.
    """

    def __init__(self, save_dir: str, work_dir: str, resume: bool = False) -> None:
        folder = Path(work_dir).absolute()
        server = os.environ.get('MLFLOW_TRACKING_URI')
        super().__init__(
            save_dir,
            exp_name=os.environ.get('MLFLOW_EXPERIMENT_NAME') or 'mmgcvit',
            tracking_uri=server or f'sqlite:///{folder / "mlflow.db"}',
            artifact_location=None if server else (folder / 'mlartifacts').as_uri(),
            # the files of the work dir would be copied within it, again with each resumed training
            **({} if server else dict(artifact_suffix=())),
        )
        self._id = _StoredId(work_dir, 'mlflow', resume)
        self._names: dict[str, str] = {}  # of metrics, such as those of a class 'knife & fork'

    def _init_env(self) -> None:
        if self._id.read():
            # MLflow rejects new values for the settings of a run
            self._tracked_config_keys: list[str] = []
        _connect('mlflow', self._start_run, 'check MLFLOW_TRACKING_URI and that its server runs')
        self._id.write(self._mlflow.active_run().info.run_id)

    def _start_run(self) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_tracking_uri(self._tracking_uri)
        if mlflow.get_experiment_by_name(self._exp_name) is None:
            mlflow.create_experiment(self._exp_name, artifact_location=self._artifact_location)
        mlflow.set_experiment(self._exp_name)
        found = self._id.read()
        mlflow.start_run(run_id=found, run_name=None if found else self._id.run_name)

    def add_scalar(self, name: str, value: float, step: int = 0, **kwargs: Any) -> None:
        """Log a value, under a name that MLflow allows."""
        super().add_scalar(self._allowed(name), value, step)

    def add_scalars(
        self, scalar_dict: dict[str, float], step: int = 0, *args: Any, **kwargs: Any
    ) -> None:
        """Log several values, under names that MLflow allows."""
        super().add_scalars({self._allowed(k): v for k, v in scalar_dict.items()}, step)

    def _allowed(self, name: str) -> str:
        if name not in self._names:
            # names with empty parts, such as a//b, are refused as well
            allowed = re.sub(r'[^\w\-./ ]', '_', posixpath.normpath(name))
            if allowed in self._names.values():
                other = allowed
                while allowed in self._names.values():
                    allowed += '_'
                print_log(
                    f'--log-to mlflow: the metric {name} is logged as {allowed}, because {other} '
                    'is the name of another one',
                    'current',
                    logging.WARNING,
                )
            self._names[name] = allowed
        return self._names[name]


class _StoredId:
    """The id of a run, in a file of the work dir."""

    def __init__(self, work_dir: str, logger: str, resume: bool) -> None:
        self.run_name = Path(work_dir).absolute().name
        self._file = Path(work_dir) / f'{logger}_run_id'
        self._resume = resume

    def read(self) -> str | None:
        """Return the id to continue, or None for a new run."""
        return self._file.read_text().strip() if self._resume and self._file.is_file() else None

    def write(self, run: str) -> None:
        write_atomically(self._file, run.encode())


def _connect(logger: str, start: Callable[[], None], remedy: str) -> None:
    try:
        start()
    except Exception as error:  # the packages have many exception classes
        raise UserError(
            f'--log-to {logger} cannot start a run ({describe(error)}): {remedy}, or remove '
            f'{logger}'
        ) from error


def log_to(cfg: Config, names: Sequence[str]) -> None:
    """Log to TensorBoard, Weights & Biases or MLflow, in addition to the log files.

    Args:
        cfg: Config of a training, whose ``work_dir`` and ``resume`` are set. Changed in place.
        names: Names in :data:`LOGGERS`.

    Raises:
        UserError: If a package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'--log-to {name} needs the package {name}, which is not installed: run "pip '
                f'install {name}", or remove {name} (the Python environment is {sys.prefix})'
            )
    cfg.visualizer = cfg.get('visualizer') or ConfigDict(type='Visualizer')
    backends = cfg.visualizer.get('vis_backends') or []
    backends = [backends] if isinstance(backends, dict) else list(backends)
    present = [class_of(each, VISBACKENDS, cfg.get('default_scope')) for each in backends]
    for name in dict.fromkeys(names):
        settings: dict[str, Any] = dict(type=LOGGERS[name])
        cls = class_of(settings, VISBACKENDS)
        # a backend of the config has its own settings
        if any(isinstance(each, type) and issubclass(cls, each) for each in present):
            continue
        if name != 'tensorboard':
            settings.update(work_dir=cfg.work_dir, resume=bool(cfg.get('resume')))
        backends.append(ConfigDict(settings))
    cfg.visualizer['vis_backends'] = backends
