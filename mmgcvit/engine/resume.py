"""Resuming a training: which checkpoint to use, and which weights not to fetch."""

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..errors import UserError
from ..registry import class_of
from ..weights import fetch
from .config import check_checkpoint

# of the checkpoint that SIGTERM saves in the middle of an epoch, whatever the others are called
ITERATION_NAME = 'iter_{}.pth'
_NAMES = ('epoch_{}.pth', ITERATION_NAME)


def resume_training(cfg: Config, checkpoint: str | None = None) -> None:
    """Set a config to resume from a checkpoint.

    All processes have to call this after they are connected. The first one selects the checkpoint,
    so all of them resume from the same one.

    Args:
        cfg: Changed in place: ``resume`` and ``load_from``.
        checkpoint: Path or URL of a checkpoint. By default the newest complete one in the config's
            work dir; if there is none, training starts from the beginning.

    Raises:
        UserError: If the given file or ``file://`` URL does not exist, if the file is not a
            complete checkpoint, or if some of the processes cannot read it.
    """
    if checkpoint is None:
        folder, names = _where(cfg)
        found = [find_checkpoint(cfg.work_dir, folder, names) if is_main_process() else None]
        broadcast_object_list(found)
        if found[0] is None:
            _log(f'no checkpoint in {folder}: training starts from the beginning')
            cfg.resume = False
            return
        checkpoint = str(found[0])
        _log(f'resuming from {checkpoint}')
    _check_in_all_processes(checkpoint)
    cfg.resume, cfg.load_from = True, checkpoint


def warn_of_earlier_training(cfg: Config) -> None:
    """Log a warning if a training starts from the beginning beside checkpoints of another one.

    Args:
        cfg: Config of the training, as for :func:`resume_training`.
    """
    if cfg.get('resume') or not is_main_process():
        return
    folder, names = _where(cfg)
    if found := find_checkpoint(cfg.work_dir, folder, names):
        print_log(
            f'{folder} has checkpoints of an earlier training (the newest is {found.name}), but '
            'this one starts from the beginning, since --resume was not given. Its checkpoints '
            'replace those of the same names. --resume continues the earlier training until this '
            'one has saved a checkpoint, and this one from then on',
            'current',
            logging.WARNING,
        )


def _log(line: str) -> None:
    if is_main_process():
        print_log(line, logger='current')


def _check_in_all_processes(checkpoint: str) -> None:
    error = None
    try:
        _check(checkpoint)
    except UserError as failure:
        error = failure
    readable = all_gather_object(error is None)
    if any(readable) and not all(readable):
        ranks = ', '.join(str(rank) for rank, can_read in enumerate(readable) if not can_read)
        raise UserError(
            f'{checkpoint} is missing or incomplete for process {ranks} of 0 to '
            f'{len(readable) - 1}: the work dir has to be one folder that all nodes share; a '
            'network file system may need a moment to show a new file on all of them'
        )
    if error is not None:
        raise error


def _check(checkpoint: str) -> None:
    scheme = re.match(r'(\w+)://', checkpoint)
    if scheme and scheme[1] != 'file':
        return  # mmengine reads other storage backends
    if not is_complete(path := fetch(check_checkpoint(checkpoint))):
        raise UserError(
            f'{path} is not a complete checkpoint: it was truncated when it was written or copied; '
            'give another one, or use --resume without a path for the newest complete one'
        )


def find_checkpoint(
    work_dir: str | Path, folder: str | Path | None = None, names: Sequence[str] = _NAMES
) -> Path | None:
    """Return the newest complete checkpoint of a training, and log a warning for incomplete ones.

    Args:
        work_dir: Work dir of the training.
        folder: Folder of its checkpoints, if that is not the work dir.
        names: File names, with ``{}`` in place of the number.
    """
    folder = Path(folder or work_dir)
    files = {
        path: (name, int(match[1]))
        for name in names
        for path in folder.glob(name.format('*'))
        if (match := re.fullmatch(re.escape(name).replace(r'\{\}', r'(\d+)'), path.name))
    }
    for path in _newest_first(files, Path(work_dir)):
        if is_complete(path):
            return path
        print_log(
            f'{path} is not complete (truncated when it was written or copied): it is skipped',
            'current',
            logging.WARNING,
        )
    return None


def is_complete(path: Path) -> bool:
    """Check whether a checkpoint is complete, without reading all of it.

    torch saves zip archives. The table of contents of a zip archive is at the end of the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/data.pkl') for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _newest_first(files: Mapping[Path, tuple[str, int]], work_dir: Path) -> list[Path]:
    """Order by age. ``last_checkpoint`` is trusted unless a later file was saved after it.

    Times are not reliable in a copied work dir, and numbers are not reliable where an earlier
    training has left its files.
    """

    def age(path: Path) -> tuple[float, int]:
        return path.stat().st_mtime, files[path][1]

    def is_later(path: Path, last: Path) -> bool:
        # numbers of epochs and of iterations cannot be compared
        same_name = files[path][0] == files[last][0]
        if not same_name:
            return age(path)[0] > age(last)[0]
        return age(path) >= age(last) and files[path] > files[last]

    ordered = sorted(files, key=age, reverse=True)
    record = work_dir / 'last_checkpoint'
    recorded = Path(record.read_text().strip()).name if record.is_file() else ''
    last = next((path for path in ordered if path.name == recorded), None)
    if last is None:
        return ordered
    later = [path for path in ordered if is_later(path, last)]
    return [*later, last, *(p for p in ordered if p != last and p not in later)]


def _where(cfg: Config) -> tuple[Path, Sequence[str]]:
    """Return the folder and the file names of a config's checkpoints, as CheckpointHook does."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    work_dir = Path(cfg.work_dir)
    out_dir = hook.get('out_dir')
    folder = Path(out_dir) / work_dir.absolute().name if out_dir else work_dir
    name = hook.get('filename_tmpl')
    return folder, list(dict.fromkeys([name, ITERATION_NAME])) if name else _NAMES


def forget_pretrained(model: nn.Module) -> None:
    """Remove every Pretrained ``init_cfg`` of a model, because a checkpoint replaces its weights.

    mmengine initializes weights, and downloads them, before it resumes.
    """
    for module in model.modules():
        configs = getattr(module, 'init_cfg', None)
        if not configs:
            continue
        configs = [configs] if isinstance(configs, Mapping) else configs
        kept = [c for c in configs if class_of(c, WEIGHT_INITIALIZERS) is not PretrainedInit]
        # mmdet's Swin and PVT read any value other than None as a checkpoint
        module.init_cfg = kept or None
