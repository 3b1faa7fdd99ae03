"""Going on with a training: which checkpoint, and what is not needed besides."""

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

_NAMES = ('epoch_{}.pth', 'iter_{}.pth')


def resume_training(cfg: Config, checkpoint: str | None = None) -> None:
    """Make the training of a config go on from a checkpoint.

    A collective call of all processes, once they are connected: the first one finds the checkpoint,
    so that none of them goes on from another one or starts anew.

    Args:
        cfg: Changed in place: its ``resume`` and ``load_from``.
        checkpoint: Path or URL of a checkpoint. By default the newest whole one of the config's
            work dir; if there is none, the training starts anew.

    Raises:
        UserError: If the given file does not exist or is no whole checkpoint, or some of the
            processes do not have it.
        mmgcvit.errors.UserError: If there is nothing at a ``file://`` URL.
    """
    if checkpoint is None:
        folder, names = _where(cfg)
        found = [find_checkpoint(cfg.work_dir, folder, names) if is_main_process() else None]
        broadcast_object_list(found)
        if found[0] is None:
            _say(f'there is no checkpoint in {folder}: starting anew')
            cfg.resume = False
            return
        checkpoint = str(found[0])
        _say(f'going on from {checkpoint}')
    _check_in_all_processes(checkpoint)
    cfg.resume, cfg.load_from = True, checkpoint


def _say(line: str) -> None:
    if is_main_process():
        print_log(line, logger='current')


def _check_in_all_processes(checkpoint: str) -> None:
    error = None
    try:
        _check(checkpoint)
    except UserError as found:
        error = found
    there = all_gather_object(error is None)
    if any(there) and not all(there):
        lacking = ', '.join(str(rank) for rank, has_it in enumerate(there) if not has_it)
        raise UserError(
            f'{checkpoint} is not there, or not whole, for process {lacking} of 0 to '
            f'{len(there) - 1}: the work dir has to be one folder that all nodes share; a network '
            'file system may need a moment to show a new file on all of them'
        )
    if error is not None:
        raise error


def _check(checkpoint: str) -> None:
    scheme = re.match(r'(\w+)://', checkpoint)
    if scheme and scheme[1] != 'file':
        return  # other storages are mmengine's to read
    if not is_whole(path := fetch(check_checkpoint(checkpoint))):
        raise UserError(
            f'{path} is no whole checkpoint: it was cut short when it was written or copied; '
            'give another one, or --resume without a path for the newest whole one'
        )


def find_checkpoint(
    work_dir: str | Path, folder: str | Path | None = None, names: Sequence[str] = _NAMES
) -> Path | None:
    """Return the newest whole checkpoint of a training; one warning for each that is not whole.

    Args:
        work_dir: Of the training.
        folder: Where its checkpoints are, if not in the work dir.
        names: File names, with ``{}`` where the number is.
    """
    folder = Path(folder or work_dir)
    files = {
        path: int(match[1])
        for name in names
        for path in folder.glob(name.format('*'))
        if (match := re.fullmatch(re.escape(name).replace(r'\{\}', r'(\d+)'), path.name))
    }
    for path in _newest_first(files, Path(work_dir)):
        if is_whole(path):
            return path
        print_log(
            f'{path} is not whole (cut short when it was written or copied): it is passed over',
            'current',
            logging.WARNING,
        )
    return None


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint has its end, without reading all of it.

    What torch saves is a zip archive, whose table of contents is the last thing in the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/data.pkl') for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _newest_first(files: Mapping[Path, int], work_dir: Path) -> list[Path]:
    """Order by age: what ``last_checkpoint`` names is trusted unless a later one was saved since.

    Times alone are no guide where a work dir was copied, numbers alone are none where an older
    training has left its files.
    """

    def age(path: Path) -> tuple[float, int]:
        return path.stat().st_mtime, files[path]

    ordered = sorted(files, key=age, reverse=True)
    record = work_dir / 'last_checkpoint'
    named = Path(record.read_text().strip()).name if record.is_file() else ''
    last = next((path for path in ordered if path.name == named), None)
    if last is None:
        return ordered
    later = [p for p in ordered if age(p) >= age(last) and files[p] > files[last]]
    return [*later, last, *(p for p in ordered if p != last and p not in later)]


def _where(cfg: Config) -> tuple[Path, Sequence[str]]:
    """Return the folder of a config's checkpoints and their names, as CheckpointHook does."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    work_dir = Path(cfg.work_dir)
    out_dir = hook.get('out_dir')
    folder = Path(out_dir) / work_dir.absolute().name if out_dir else work_dir
    return folder, [hook['filename_tmpl']] if hook.get('filename_tmpl') else _NAMES


def forget_pretrained(model: nn.Module) -> None:
    """Drop every Pretrained ``init_cfg`` of a model: a checkpoint is about to replace its weights.

    mmengine initializes weights, and fetches their URLs, before it resumes.
    """
    for module in model.modules():
        configs = getattr(module, 'init_cfg', None)
        if not configs:
            continue
        configs = [configs] if isinstance(configs, Mapping) else configs
        kept = [c for c in configs if class_of(c, WEIGHT_INITIALIZERS) is not PretrainedInit]
        # Swin and PVT of mmdet read any other value than None as a checkpoint
        module.init_cfg = kept or None
