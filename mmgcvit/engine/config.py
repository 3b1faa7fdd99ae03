"""Reading config files on either of the two stacks."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from ..errors import UserError


def load_config(
    path: str | os.PathLike,
    work_dir: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Read a config file and settle its work dir.

    Args:
        path: Config file; it may inherit from ``mmdet::`` and ``mmseg::`` configs.
        work_dir: Where checkpoints and logs go. By default the config's own, else
            ``work_dirs/`` and the config's name.
        options: Settings that replace those of the file, by dotted names. The first index that a
            list does not have adds an element to it: ``{'custom_hooks.0.type': 'EMAHook'}``.

    Raises:
        UserError: If there is no such file, it is no config, or an option is not of its form.
    """
    if not Path(path).is_file():
        raise UserError(
            f'the config {path} does not exist (looked for from {Path.cwd()}): give the path of a '
            'config file, as configs/detection/mask_rcnn_gcvit_shapes.py'
        )
    if not is_installed('mmsegmentation'):
        # onedl's distribution has another name than mmengine looks for
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    try:
        cfg = Config.fromfile(path)
    except OSError as error:
        raise UserError(
            f'{path} cannot be read as a config ({error}): give a .py file, as '
            'configs/detection/mask_rcnn_gcvit_shapes.py'
        ) from error
    if options:
        _merge_options(cfg, options)
    if work_dir is not None:
        cfg.work_dir = os.fspath(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    return cfg


def _merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    try:
        for name in options:
            _make_room(cfg, name.split('.'))
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:
        reason = ' '.join(str(error).strip('\'"').split())[:300]
        raise UserError(
            f'--cfg-options cannot be put into the config ({reason}): compare with what '
            f'{cfg.filename} and its bases have'
        ) from error


def _make_room(cfg: Config, keys: Sequence[str]) -> None:
    """Add the element that an option's keys lead to, if it is the next one of a list.

    mmengine can only change the elements that a list has, and makes a dict of indices otherwise.
    """
    node = cfg
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(node, list):
            if key == str(len(node)):
                node.append(ConfigDict())
            if not (key.isdigit() and int(key) < len(node)):
                return  # mmengine's error says so
            node = node[int(key)]
        elif isinstance(node, Mapping | Config):
            if following is not None and following.isdigit() and node.get(key) is None:
                if following != '0':
                    raise KeyError(f'{".".join(keys)}: there is no {key} yet, begin with index 0')
                node[key] = []
            node = node.get(key)


def check_checkpoint(path: str) -> str:
    """Return the path of a checkpoint, which has to exist unless it is a URL."""
    if '://' not in path and not Path(path).is_file():
        raise UserError(
            f'the checkpoint {path} does not exist (looked for from {Path.cwd()}): give the path '
            'of a .pth file, as work_dirs/CONFIG_NAME/epoch_36.pth'
        )
    return path
