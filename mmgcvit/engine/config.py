"""Loading config files."""

import contextlib
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log
from mmengine.utils import is_installed

from ..errors import UserError, did_you_mean, one_line
from ..installed import config_names, config_path
from .launch import process_rank
from .options import apply_options, walk

# mmengine's warning about a config file that has `_deprecation_ = dict(expected=...)`
RENAMED = re.compile(r'The config file (.+?) will be deprecated.*?Please use (\S+) instead', re.S)


# Kinds of parts of a config. Parts may also be objects, such as a DataLoader.
KINDS = {
    (dict,): (
        *('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'optim_wrapper'),
        *('train_cfg', 'val_cfg', 'test_cfg', 'default_hooks', 'auto_scale_lr', 'randomness'),
        *('env_cfg', 'log_processor', 'visualizer'),
    ),
    # a script may pass a list as a dataset
    (dict, list): tuple(f'{split}_dataloader.dataset' for split in ('train', 'val', 'test')),
    (list, tuple): ('custom_hooks',),
    (dict, list, tuple): ('val_evaluator', 'test_evaluator', 'param_scheduler'),
    (str,): ('load_from', 'work_dir', 'default_scope'),
}
# of the names of configs of this package
PREFIX = 'mmgcvit::'
EXAMPLE = 'configs/detection/mask_rcnn_gcvit_shapes.py'
CHECKPOINTS = ('.pth', '.pt', '.tar', '.safetensors')
ORDER = 'pass the config first and the checkpoint second'
PLAIN = (str, int, float, list, tuple, dict)
# Parts that Runner needs together.
TOGETHER = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)


def load_config(
    path: str | os.PathLike,
    work_dir: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Load a config file, apply options to it and set its work dir.

    If the config has been renamed (mmengine's key ``_deprecation_``), it is still loaded, and one
    line shows the new name.

    Args:
        path: Config file, or the name of a config of this package, such as
            ``detection/cascade_gcvit_s.py``. It may inherit from configs of the libraries and of
            this package: ``mmdet::...``, ``mmgcvit::...``.
        work_dir: Folder of checkpoints and logs. Defaults to the config's ``work_dir``, or to
            ``work_dirs/`` and the name of the config file.
        options: Settings that override the file, by dotted names. The next index of a list adds an
            element to it: ``{'custom_hooks.0.type': 'EMAHook'}``.

    Raises:
        UserError: If the file does not exist or cannot be loaded, or if an option does not match it
            or has no effect.
    """
    if Path(path).suffix in CHECKPOINTS:
        raise UserError(f'the config {path} is a checkpoint: {ORDER}')
    path = _find(path)
    if not is_installed('mmsegmentation'):
        # mmengine looks for mmsegmentation, but onedl's distribution has a different name
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    try:
        cfg = _load(path)
    except Exception as error:  # a config file is code and may raise anything
        remedy = _base_remedy(error) or f'fix it, or pass a different .py file, such as {EXAMPLE}'
        raise UserError(
            f'{path} cannot be read as a config ({_place(error, path)}: {type(error).__name__} '
            f'{one_line(error)}): {remedy}'
        ) from error
    if options:
        apply_options(cfg, options)
    if work_dir is not None:
        cfg.work_dir = os.fspath(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    return cfg


def require_kinds(cfg: Config) -> None:
    """Raise a UserError if a part of a config has the wrong type, such as a number for a dict."""
    for kinds, names in KINDS.items():
        for name in names:
            part, _, key = name.partition('.')
            value = cfg.get(part)
            if key:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, PLAIN) and not isinstance(value, kinds):
                raise UserError(
                    f'{name} is {one_line(repr(value), 80)} in the config, but has to be a '
                    f'{" or a ".join(kind.__name__ for kind in kinds)}: write it as in {EXAMPLE}, '
                    'or its bases'
                )


def require_parts(cfg: Config) -> None:
    """Raise a UserError if a config can train, validate or test only in part."""
    for names in TOGETHER:
        missing = [name for name in names if cfg.get(name) is None]
        if 0 < len(missing) < len(names):
            present = [name for name in names if name not in missing]
            raise UserError(
                f'the config has {" and ".join(present)}, but no {" and ".join(missing)}: add it, '
                f'or set {present[0]} = None as well'
            )


def _load(path: str | os.PathLike) -> Config:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with _bases_of_this_package():
            cfg = Config.fromfile(path)
        for _ in walk(cfg):
            pass  # a pure Python config imports its types when they are accessed
    for warning in caught:
        renamed = RENAMED.match(str(warning.message))
        if renamed and process_rank() == 0:  # a DeprecationWarning, which Python hides by default
            old, new = renamed.groups()
            print_log(
                f'{os.path.relpath(old)} has been renamed to {new}; the old name will be removed '
                'in version 0.3',
                logger='current',
                level=logging.WARNING,
            )
        elif not renamed:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return cfg


@contextlib.contextmanager
def _bases_of_this_package() -> Iterator[None]:
    """Let configs inherit from ``mmgcvit::NAME``.

    mmengine finds configs only of the packages that it lists, and not those of an editable
    installation. It would also give them a scope in which the types of mmdet are not found.
    """
    path_of_base = Config._get_cfg_path

    def find(base: str, filename: str) -> tuple[str, str | None]:
        name = base.removeprefix(PREFIX)
        return path_of_base(base, filename) if name == base else (config_path(name), None)

    Config._get_cfg_path = staticmethod(find)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(path_of_base)


def require_work_dir(cfg: Config) -> None:
    """Raise a UserError if the work dir, or a folder above it, is a file."""
    folder = Path(cfg.get('work_dir') or '')
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        of = '' if file == folder else f' of the work dir {folder}'
        raise UserError(
            f'{file}{of} is a file, and a folder is needed: pass another --work-dir, or rename the '
            'file'
        )


def _find(path: str | os.PathLike) -> str | os.PathLike:
    """Return the path of a config file, or of the config that has this name in the package."""
    name = os.fspath(path)
    in_package = name.removeprefix('configs/')
    if name.startswith(PREFIX):
        found = config_path(name.removeprefix(PREFIX))
    elif not Path(name).exists() and in_package in config_names():
        found = config_path(in_package)
    else:
        whole = [known for known in config_names() if '_base_' not in known]
        example = did_you_mean(in_package, whole) or f', for example {EXAMPLE}'
        _require_file('config', path, f'config file{example}', '*.py')
        return path
    if process_rank() == 0:
        print_log(f'config: {found}', logger='current')
    return found


def _require_file(kind: str, path: str | os.PathLike, example: str, pattern: str) -> None:
    """Raise a UserError unless a path is one of a file; of a folder, name a file in it."""
    if Path(path).is_dir():
        files = sorted(Path(path).glob(pattern), key=lambda file: file.stat().st_mtime)
        inside = f'a file in it, such as {files[-1]}' if files else f'the path of a {example}'
        raise UserError(f'the {kind} {path} is a folder: pass {inside}')
    if not Path(path).is_file():
        raise UserError(
            f'the {kind} {path} does not exist (current folder: {Path.cwd()}): pass the path of a '
            f'{example}'
        )


def _base_remedy(error: Exception) -> str:
    """Return the remedy if a base of a config does not exist, or ''."""
    base = next(reversed(_files_read(error)), '')
    in_library = '/.mim/' in base
    if not isinstance(error, FileNotFoundError) or Path(base).is_file() or in_library:
        return ''
    return (
        'a relative _base_ starts in the folder of the config that names it, so a config that was '
        'copied loses its bases. Write the absolute path of the base there, or put the config back '
        'beside its bases'
    )


def _place(error: Exception, path: str | os.PathLike) -> str:
    """Return the config or base that raised an error, with the line if it is known."""
    # skip bases that do not exist and mmengine's temporary copies
    files = (file for file in reversed(_files_read(error)) if Path(file).is_file())
    file = next(files, os.fspath(path))
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    lines += [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
    return f'{os.path.relpath(file)}:{lines[-1]}' if lines else os.path.relpath(file)


def _files_read(error: Exception) -> list[str]:
    """Return the files that mmengine was reading: a config, its base, a base of that, and so on."""
    # each in a separate call
    return [
        str(frame.f_locals['filename'])
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get('__name__') == Config.__module__ and 'filename' in frame.f_locals
    ]


def check_checkpoint(path: str) -> str:
    """Return the path of a checkpoint; raise UserError if it is neither a URL nor a file."""
    if '://' not in path:
        if Path(path).suffix == '.py':
            raise UserError(f'the checkpoint {path} is a config: {ORDER}')
        example = '.pth file, for example work_dirs/CONFIG_NAME/epoch_36.pth'
        _require_file('checkpoint', path, example, '*.pth')
    return path
