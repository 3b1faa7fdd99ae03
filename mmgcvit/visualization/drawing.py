"""Images of the libraries' visualization hooks (``draw=True``), as the pipeline loads them."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..engine.device import Machine
from ..errors import describe
from ..registry import HOOKS
from .images import load_image, to_rgb
from .painting import SHOWN

MODULES = tuple(
    f'{library}.engine.hooks.visualization_hook' for library in ('mmdet', 'mmseg', 'mmpretrain')
)


def adapt_drawing(cfg: Config, machine: Machine) -> None:
    """Add the hook :class:`DrawLoadedImages` if a visualization hook draws."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    # mmdet and mmseg call this argument draw, mmpretrain calls it enable
    if not any(hook and (hook.get('draw') or hook.get('enable')) for hook in hooks):
        return
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmgcvit.DrawLoadedImages')]


@HOOKS.register_module()
class DrawLoadedImages(Hook):
    """Let the visualization hooks of the libraries draw images as the pipeline loads them.

    These hooks read images with mmcv, or draw the inputs of the model, so that images of other
    formats or numbers of channels would end the run. If an image still cannot be drawn, it is
    skipped with a warning.
    """

    def __init__(self) -> None:
        self._failures = 0

    def before_run(self, runner: Runner) -> None:
        for hook in runner.hooks:
            modules = [sys.modules[base.__module__] for base in type(hook).__mro__]
            module = next((each for each in modules if each.__name__ in MODULES), None)
            if module is None:
                continue
            for mode in ('val', 'test'):
                name = f'after_{mode}_iter'
                draw = partial(getattr(type(hook), name), hook)
                setattr(hook, name, partial(self._draw, draw, module, mode))

    def _draw(
        self,
        draw: Callable[..., None],
        module: ModuleType,
        mode: str,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        dataset = getattr(runner, f'{mode}_dataloader').dataset

        def read(path: str) -> np.ndarray:
            sample = next(each for each in outputs or () if each.img_path == path)
            return load_image(dataset, sample.metainfo)

        try:
            with _reading(module, read):
                draw(runner, batch_idx, data_batch=_with_colors(data_batch), outputs=outputs)
        except Exception as error:  # no error in drawing may end a run
            self._failures += 1
            if self._failures <= SHOWN:
                paths = ', '.join(str(getattr(each, 'img_path', '')) for each in outputs or ())
                last = '. This is the last of these warnings' if self._failures == SHOWN else ''
                print_log(
                    f'not drawn, {mode} set: {paths} ({describe(error)}). For a training without '
                    f'pictures, set default_hooks.visualization.draw=False{last}',
                    'current',
                    logging.WARNING,
                )


@contextmanager
def _reading(module: ModuleType, read: Callable[[str], np.ndarray]) -> Iterator[None]:
    """Let the functions of a module read images with another function than mmcv's."""
    # get returns the path instead of the content, so that imfrombytes receives the path
    as_path = SimpleNamespace(get=lambda path, **_: path)
    replaced = {
        'get': as_path.get,
        'fileio': as_path,
        'mmcv': SimpleNamespace(imfrombytes=lambda path, **_: read(path)),
    }
    saved = {name: value for name, value in vars(module).items() if name in replaced}
    vars(module).update({name: replaced[name] for name in saved})
    try:
        yield
    finally:
        vars(module).update(saved)


def _with_colors(batch: Any) -> Any:
    """Return a batch whose inputs, (C, H, W) each, have three channels."""
    inputs = batch.get('inputs') if isinstance(batch, dict) else None
    if not isinstance(inputs, list | tuple | Tensor):
        return batch
    return {**batch, 'inputs': [_three_channels(image) for image in inputs]}


def _three_channels(image: Tensor) -> Tensor:
    if image.dim() != 3 or len(image) == 3:
        return image
    rgb = to_rgb(image.permute(1, 2, 0).cpu().numpy(), is_bgr=False)
    return torch.from_numpy(rgb).permute(2, 0, 1)
