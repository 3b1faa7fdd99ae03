"""Maps of what a trained model does with an image: global queries, attention and Grad-CAM."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import UserError
from ..models import GCViT
from ..models.variants import GlobalKeyValueAttention
from .attention import AttentionMap, Recording, choices, choose_blocks, find_backbone, record
from .cam import (
    SCORE_THR,
    Target,
    averages_gradients,
    choose_target,
    find_targets,
    grad_cam,
    require_score,
    some_of,
)
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
    score_thr: float = SCORE_THR
    numbers: bool = False


@dataclass(frozen=True)
class Maps:
    """The maps of one image.

    Attributes:
        options: What was computed.
        image: The image as the pipeline loads it, RGB, (H, W, 3), uint8.
        placement: Position of the image in the network's input.
        backbone: The network.
        recording: Global queries, attention and outputs of the backbone.
        chosen: Stage and block of the chosen attention maps.
        target: What Grad-CAM explains.
        cams: Grad-CAM by the index of the stage, (h, w) each.
        cam_method: Name of the method.
    """

    options: MapOptions
    image: np.ndarray
    placement: Placement
    backbone: GCViT
    recording: Recording
    chosen: list[tuple[int, int]]
    target: Target | None = None
    cams: dict[int, np.ndarray] = field(default_factory=dict)
    cam_method: str = ''

    @property
    def attention(self) -> dict[tuple[int, int], AttentionMap]:
        """Attention by stage and block: the chosen ones, and the last local and global ones."""
        return {(each.stage, each.block): each for each in self.recording.attention}

    def npz(self) -> bytes:
        """Return the numbers as an NPZ file, see docs/visualization.md."""
        numbers: dict[str, Any] = {
            'image_size': self.placement.image_size,
            'seen_size': self.placement.seen_size,
            'input_size': self.recording.input_size,
            'scale': self.placement.scale,
            'crop': self.placement.crop,
        }
        for i, query in self.recording.queries.items():
            numbers[f'query_stage{i}'] = query.cpu().numpy()
        for each in self.recording.attention:
            numbers[f'attention_{each.name}'] = each.weights.cpu().numpy()
            numbers[f'padding_{each.name}'] = each.padding.cpu().numpy()
        if self.options.token is not None:
            numbers['token'] = self.options.token
        if self.target is not None:
            numbers['cam_class'] = self.target.index
            numbers |= {f'cam_stage{stage}': cam for stage, cam in self.cams.items()}
        content = io.BytesIO()
        np.savez_compressed(content, **numbers)
        return content.getvalue()


def compute_maps(
    trained: 'TrainedModel', image_path: str | os.PathLike, options: MapOptions
) -> Maps:
    """Run a model on an image and record its maps.

    Raises:
        UserError: If the image or an option does not fit.
    """
    backbone = find_backbone(trained.model)
    chosen = choose_blocks(backbone, options.stage, options.block, options.kind)
    _check_head(backbone, chosen, options.head)
    require_score(options.score_thr)
    image = trained.load_image(image_path)
    batch = trained.load_batch(image_path)
    placement = _placement(batch)
    token = options.token and placement.cell(*options.token, stride=1)
    _process_whole_images(trained.model)
    blocks = blocks_to_record(backbone, chosen)
    with torch.no_grad(), record(backbone, blocks, token) as recording:
        (prediction,) = trained.model.test_step(batch)
    if not recording.outputs:
        raise UserError(
            f'the {type(trained.model).__name__} does not run its GC ViT for predictions: pass a '
            'config whose detector, segmentor or classifier uses it as the backbone'
        )
    maps = Maps(options, image, placement, backbone, recording, chosen)
    if not options.with_cam:
        return maps
    target = _target(trained, prediction, options)
    if target is None:
        return maps
    cams = grad_cam(trained.model, trained.task, backbone, recording.outputs, batch, target)
    return replace(
        maps,
        target=target,
        cams={stage: cam.cpu().numpy() for stage, cam in cams.items()},
        cam_method='Grad-CAM' if averages_gradients(trained.task) else 'Grad-CAM (HiResCAM)',
    )


def _placement(batch: Mapping[str, Any]) -> Placement:
    metainfo = batch['data_samples'][0].metainfo
    placement = Placement.of_sample(metainfo)
    found, recorded = tuple(batch['inputs'][0].shape[-2:]), tuple(metainfo['img_shape'][:2])
    if found != recorded:
        raise UserError(
            f'the test pipeline gives {found[0]}×{found[1]} pixels (height × width) and records '
            f'img_shape={recorded}, so its maps cannot be placed on the image: use transforms of '
            'mmcv or mmpretrain that record it, such as Resize, ResizeEdge and CenterCrop'
        )
    return placement


def _target(
    trained: 'TrainedModel', prediction: BaseDataElement, options: MapOptions
) -> Target | None:
    targets = find_targets(trained.task, trained.classes, prediction, options.score_thr)
    if not targets and options.cam is None:
        print_log(
            f'no Grad-CAM: no detection has a score above {options.score_thr:g} (--score-thr)',
            'current',
        )
        return None
    target = choose_target(trained.task, trained.classes, targets, options.cam)
    print_log(f'choices of --cam: {some_of([each.title for each in targets])}', 'current')
    return target


def blocks_to_record(backbone: GCViT, chosen: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the chosen blocks and those of the sheet, except those with keys of global tokens."""
    of_sheet = [
        (i, j)
        for i, j in choose_blocks(backbone)
        if not isinstance(backbone.stages[i].blocks[j].attn, GlobalKeyValueAttention)
    ]
    return sorted({*chosen, *of_sheet})


def _check_head(backbone: GCViT, chosen: list[tuple[int, int]], head: int | None) -> None:
    if head is None:
        return
    for stage, block in chosen:
        table = backbone.stages[stage].blocks[block].attn.relative_position_bias_table
        if not 0 <= head < table.shape[1]:
            raise UserError(
                f'--head {head} is not in stage {stage}: choose from '
                f'{choices(range(table.shape[1]))}, or another --stage'
            )


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
