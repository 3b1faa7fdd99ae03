"""Maps of what a trained model does with an image: queries, attention and Grad-CAM, as files.

H, W: height and width of an image in pixels.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import UserError
from ..files import write_atomically
from .attention import GLOBAL, LOCAL, AttentionMap, choose_blocks, find_backbone, record
from .cam import Target, choose_target, grad_cam
from .map_pictures import Panel, draw_panel, draw_sheet, principal_colors
from .placement import Placement

if TYPE_CHECKING:
    from ..inference import TrainedModel


@dataclass(frozen=True)
class MapOptions:
    """What to show.

    Attributes:
        stage: Index of a stage, from 0. None for all stages.
        block: Index of a block of this stage, from 0. None for the last block of each kind.
        kind: 'local' or 'global' attention. None for both.
        head: Index of an attention head, from 0. None for the mean of all heads.
        token: x and y of a pixel whose token's attention is shown. None for the mean over the
            queries of each window.
        with_cam: Whether to compute Grad-CAM.
        cam: Class or detection, see :func:`.choose_target`. None for the best one.
        score_thr: Only detections with a higher score are considered.
        numbers: Whether to also write the numbers to ``maps.npz``.
    """

    stage: int | None = None
    block: int | None = None
    kind: str | None = None
    head: int | None = None
    token: tuple[int, int] | None = None
    with_cam: bool = True
    cam: str | None = None
    score_thr: float = 0.3
    numbers: bool = False


def draw_maps(
    trained: 'TrainedModel', image_path: str | Path, folder: str | Path, options: MapOptions
) -> Iterator[Path]:
    """Write pictures of the global queries, the attention and the Grad-CAM of an image.

    Args:
        trained: Model with a GC ViT.
        image_path: Image file.
        folder: Output folder. Existing files of the same names are replaced.
        options: What to show.

    Yields:
        The path of each file when it is written.

    Raises:
        UserError: If the image or an option does not fit.
    """
    maps = _Maps(trained, image_path, options)
    for name, content in maps.files():
        yield write_atomically(Path(folder) / name, content())


class _Maps:
    """The maps of one image, computed at once and drawn one after the other."""

    def __init__(
        self, trained: 'TrainedModel', image_path: str | Path, options: MapOptions
    ) -> None:
        self.options = options
        self.backbone = find_backbone(trained.model)
        self.chosen = choose_blocks(self.backbone, options.stage, options.block, options.kind)
        self._check_head()
        self.image = trained.load_image(image_path)
        batch = trained.load_batch(image_path)
        self.placement = Placement.of_sample(batch['data_samples'][0].metainfo)
        pixel = None
        if options.token is not None:
            pixel = self.placement.cell(*options.token, stride=1)
        _process_whole_images(trained.model)
        blocks = {*self.chosen, *choose_blocks(self.backbone)}
        with torch.no_grad(), record(self.backbone, sorted(blocks), pixel) as recording:
            (prediction,) = trained.model.test_step(batch)
        if not recording.outputs:
            raise UserError(
                f'the {type(trained.model).__name__} does not run its GC ViT for predictions, so '
                'there are no maps: pass a config whose detector, segmentor or classifier uses it'
            )
        self.recording = recording
        self.attention = {(each.stage, each.block): each for each in recording.attention}
        self.target = self._target(trained, prediction)
        self.cams: dict[int, np.ndarray] = {}
        if self.target is not None:
            found = grad_cam(
                trained.model,
                trained.task,
                self.backbone,
                recording.outputs,
                batch,
                self.target,
            )
            self.cams = {stage: each.cpu().numpy() for stage, each in found.items()}

    def files(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield the name of each file, and a function that returns its content."""
        yield 'sheet.png', self._sheet
        stages = [i for i in self.recording.queries if self.options.stage in (None, i)]
        if stages:
            yield (
                'queries.png',
                lambda: draw_sheet(
                    self.image,
                    [[Panel('image'), *(self._query(i, 'global query, ') for i in stages)]],
                    'Global queries: similar colors mean similar queries',
                ),
            )
        for key in self.chosen:
            each = self.attention[key]
            name = f'attention_{each.name}{self._suffix()}.png'
            yield name, lambda each=each: draw_panel(self.image, self._attention(each))
        if self.target is not None:
            stage = self.options.stage if self.options.stage in self.cams else max(self.cams)
            name = f'cam_stage{stage}_{re.sub(r"[^0-9A-Za-z]+", "_", self.target.name)}.png'
            yield name, lambda: draw_panel(self.image, self._cam(stage, self.target.title))
        if self.options.numbers:
            yield 'maps.npz', self._numbers

    def _target(self, trained: 'TrainedModel', prediction: BaseDataElement) -> Target | None:
        options = self.options
        if not options.with_cam:
            return None
        try:
            return choose_target(
                trained.task, trained.classes, prediction, options.cam, options.score_thr
            )
        except UserError as error:
            if options.cam is not None:
                raise
            print_log(f'no Grad-CAM: {error}', 'current')
            return None

    def _check_head(self) -> None:
        head = self.options.head
        for stage, block in self.chosen if head is not None else ():
            table = self.backbone.stages[stage].blocks[block].attn.relative_position_bias_table
            if not 0 <= head < table.shape[1]:
                raise UserError(
                    f'--head {head} is not in stage {stage}, which has {table.shape[1]} attention '
                    f'heads: choose from 0 to {table.shape[1] - 1}, or choose another --stage'
                )

    def _suffix(self) -> str:
        head, token = self.options.head, self.options.token
        suffix = '' if head is None else f'_head{head}'
        return suffix if token is None else f'{suffix}_x{token[0]}_y{token[1]}'

    def _sheet(self) -> bytes:
        token = self.options.token
        rows = []
        for i, stage in enumerate(self.backbone.stages):
            blocks = dict.fromkeys((LOCAL, GLOBAL))
            blocks |= {
                each.kind: each
                for each in (self.attention[key] for key in choose_blocks(self.backbone, i))
            }
            blocks |= {
                each.kind: each
                for each in (self.attention[key] for key in self.chosen)
                if each.stage == i
            }
            row = [self._windows(i, stage), self._query(i)]
            row += [each and self._attention(each, small=True) for each in blocks.values()]
            if self.target is not None:
                row.append(self._cam(i, 'Grad-CAM') if i in self.cams else None)
            rows.append(row)
        what = 'mean over the queries of each window' if token is None else 'of the marked token'
        title = f'Attention {what}'
        if self.target is not None:
            title += f'; Grad-CAM of {self.target.title}'
        return draw_sheet(self.image, rows, title)

    def _windows(self, i: int, stage: nn.Module) -> Panel:
        """Return the panel of the image with the windows of a stage."""
        size, stride = stage.window_size, 4 * 2**i
        height, width = self.placement.image_size
        top, left, step_y, step_x = self.placement.box_on_image((0, 0, size, size), stride)
        return Panel(
            f'stage {i}: windows of {size}×{size} tokens,\nstride {stride}',
            rows=np.arange(top, height, step_y),
            columns=np.arange(left, width, step_x),
            token=self.options.token,
            rectangle=self._box() if i == 0 else None,
        )

    def _query(self, i: int, title: str = '') -> Panel | None:
        query = self.recording.queries.get(i)
        if query is None:
            return None
        size = len(query)
        stride = tuple(each / size for each in self.recording.input_size)
        colors = self.placement.to_image(principal_colors(query.cpu().numpy()), stride)
        title = f'{title}stage {i}' if title else 'global query'
        return Panel(f'{title}\n{size}×{size}, 3 principal components', colors)

    def _attention(self, each: AttentionMap, small: bool = False) -> Panel:
        """Return the panel of a block's attention, relative to uniform attention."""
        head = self.options.head
        weights, padding = each.weights.cpu(), each.padding.cpu()
        # a head of the chosen stage may not exist in the other stages of the sheet
        if head is not None and head < len(weights):
            weights, padding = weights[head], padding[head]
            which = f'head {head}'
        else:
            which = f'mean of {len(weights)} heads' if len(weights) > 1 else '1 head'
            weights, padding = weights.mean(0), padding.mean(0)
        uniform = weights.numpy() * each.window_size**2
        rectangle = None
        if each.window is not None:
            inside = np.zeros(uniform.shape, bool)
            top, left, height, width = each.window
            inside[top : top + height, left : left + width] = True
            uniform = np.where(inside, uniform, np.nan)
            rectangle = self.placement.box_on_image(each.window, each.stride)
        values = self.placement.to_image(uniform, (each.stride, each.stride))
        panel = Panel('', values, 'attention / uniform attention', self.options.token, rectangle)
        share = f'{float(padding.mean()):.1%} to padding'
        if small:
            title = f'{each.kind}, block {each.block}, {which}\n0 to {panel.highest:.3g} × uniform'
        else:
            query = 'mean over queries' if each.token is None else 'query of the marked token'
            title = (
                f'{each.kind} attention, stage {each.stage}, block {each.block}, {which}\n'
                f'{query}; {share}'
            )
        return replace(panel, title=title)

    def _cam(self, stage: int, title: str) -> Panel:
        cam, stride = self.cams[stage], 4 * 2**stage
        values = self.placement.to_image(cam, (stride, stride), smooth=True)
        highest = float(np.nanmax(values))
        values = values / highest if highest > 0 else values
        note = '' if highest > 0 else ', 0 everywhere'
        return Panel(
            f'{title}\nGrad-CAM of the output of stage {stage}{note}'
            if title != 'Grad-CAM'
            else f'Grad-CAM of output {stage}{note}\n',
            values,
            'Grad-CAM / its maximum',
            rectangle=self._box(),
            outline=self.target.mask,
        )

    def _box(self) -> tuple[float, float, float, float] | None:
        if self.target is None or self.target.box is None:
            return None
        left, top, right, bottom = self.target.box.tolist()
        return top, left, bottom - top, right - left

    def _numbers(self) -> bytes:
        numbers: dict[str, Any] = {
            'image_size': self.placement.image_size,
            'seen_size': self.placement.seen_size,
            'input_size': self.recording.input_size,
            'scale': self.placement.scale,
            'crop': self.placement.crop,
        }
        for i, query in self.recording.queries.items():
            numbers[f'query_stage{i}'] = query.cpu().numpy()
        for each in self.attention.values():
            numbers[f'attention_{each.name}'] = each.weights.cpu().numpy()
            numbers[f'padding_{each.name}'] = each.padding.cpu().numpy()
        for stage, cam in self.cams.items():
            numbers[f'cam_stage{stage}'] = cam
        if self.options.token is not None:
            numbers['token'] = self.options.token
        if self.target is not None:
            numbers['cam_class'] = self.target.index
        content = io.BytesIO()
        np.savez_compressed(content, **numbers)
        return content.getvalue()


def _process_whole_images(model: nn.Module) -> None:
    """Let a segmentor process an image at once, not in overlapping crops."""
    settings = getattr(model, 'test_cfg', None)
    if settings and settings.get('mode') == 'slide':
        settings['mode'] = 'whole'
        print_log(
            'the config predicts in overlapping crops (test_cfg.mode=slide); here, the model '
            'processes the image at once',
            'current',
        )
