"""Reading config files on either of the two stacks."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from .tool import ToolError


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
        options: Settings that replace those of the file, by dotted names.

    Raises:
        ToolError: If there is no such file.
    """
    if not Path(path).is_file():
        raise ToolError(
            f'the config {path} does not exist (looked for from {Path.cwd()}): give the path of a '
            'config file, as configs/detection/mask_rcnn_gcvit_shapes.py'
        )
    if not is_installed('mmsegmentation'):
        # onedl's distribution has another name than mmengine looks for
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    cfg = Config.fromfile(path)
    if options:
        cfg.merge_from_dict(dict(options))
    if work_dir is not None:
        cfg.work_dir = os.fspath(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    return cfg
