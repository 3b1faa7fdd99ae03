"""The config of a project: the settings in which it differs from a config of the package."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

from ..cli import as_commands
from ..errors import counted, printable
from ..models.arch import ARCHS
from ..task import CLASSIFICATION, DETECTION, SEGMENTATION, Task
from .data import Code, Data
from .recipes import Recipe, Schedule, recipe_of, schedule_of

CONFIG = 'config.py'
WIDTH = 100  # columns
LOG_INTERVAL = 50  # iterations, in the configs of mmdet and mmseg
# images of COCO typically have 640×480 pixels and are resized to 1067×800
COCO_ENLARGEMENT, COCO_LONG, COCO_SHORT = 5 / 3, 1333, 800
# shorter edge to which the inherited config of UPerNet resizes images, and its limits
SEGMENTED, LARGEST_SEGMENTED, SMALLEST_SEGMENTED = 512, 1024, 256
# stages whose channels are the in_channels of a part of the model
CHANNELS: dict[Task, dict[str, tuple[int, ...]]] = {
    DETECTION: {'neck': (0, 1, 2, 3)},
    SEGMENTATION: {'decode_head': (0, 1, 2, 3), 'auxiliary_head': (2,)},
    CLASSIFICATION: {'head': (3,)},
}
NUM_CLASSES = dict(num_classes=Code('len(classes)'))


def config_text(
    data: Data,
    folder: Path,
    project: Path,
    arch: str = 'tiny',
    epochs: int | None = None,
    weights: str | None = None,
) -> str:
    """Return the text of a project's config.

    Args:
        data: The annotated images.
        folder: Their folder, absolute.
        project: Folder of the project, absolute.
        arch: Size of the backbone.
        epochs: Number of epochs. By default, it depends on the number of training images.
        weights: Checkpoint of the backbone, or 'none' to start from random weights. By default,
            NVIDIA's.
    """
    recipe = recipe_of(data)
    schedule = schedule_of(recipe, data.train.images, epochs)
    parts = (
        _header(data, recipe, project, arch, weights),
        _paths(data, folder, project),
        _datasets(data, recipe),
        _model(data, arch, weights),
        _training(data, recipe, schedule),
    )
    text = '\n\n'.join('\n'.join(lines) for lines in parts) + '\n'
    # mmengine substitutes names in double braces, which may occur in class names
    return text.replace('{{', r'{\x7b')


def _header(
    data: Data, recipe: Recipe, project: Path, arch: str, weights: str | None
) -> Iterator[str]:
    images = counted(data.train.images, 'image')
    yield f'# {recipe.model} with GC ViT ({arch}), fine-tuned on {images}.'
    yield '#'
    path = printable(shlex.quote(str(project / CONFIG)))
    yield as_commands(f'# Launch:   python tools/train.py {path}')
    yield '# Hardware: 1 GPU; for several, add --auto-scale-lr'
    yield '# Source:   the inherited config, with a schedule of ours that was not tuned'
    yield '# Result:   not trained'
    if weights is None:
        yield '# License:  CC BY-NC-SA 4.0 for the pretrained weights, and for models fine-tuned'
        yield '#           from them'
    yield assign('_base_', f'mmgcvit::{recipe.base}')


def _paths(data: Data, folder: Path, project: Path) -> Iterator[str]:
    yield assign('data_root', f'{folder}/')
    yield assign('project', f'{project}/')
    yield assign('work_dir', Code("project + 'work_dir'"))
    line = assign('classes', data.classes)
    if len(line) > WIDTH:
        names = pformat(data.classes, width=WIDTH - 4, compact=True)[1:-1].rstrip(',')
        names = names.replace('\n ', '\n    ')
        line = f'classes = (\n    {names},\n)'
    yield line


def _datasets(data: Data, recipe: Recipe) -> Iterator[str]:
    train, val = dict(data.train.settings), dict(data.val.settings)
    both: dict[str, Any] = dict(data_root=Code('data_root'))
    both['metainfo'] = dict(classes=Code('classes'))
    if data.task is DETECTION:
        yield from _detection_pipelines(data)
        train['pipeline'], val['pipeline'] = Code('train_pipeline'), Code('test_pipeline')
        if data.has_empty_images:
            # by default, mmdet removes images without objects from the training set
            train['filter_cfg'] = dict(filter_empty_gt=False, min_size=32)
    if data.task is SEGMENTATION:
        resized = list(_segmentation_pipelines(data))
        if resized:
            train['pipeline'], val['pipeline'] = Code('train_pipeline'), Code('test_pipeline')
        yield from resized
        both = dict(type='BaseSegDataset', **both)
        yield '# to ignore label 0, add reduce_zero_label=True here, and remove the first class'
    yield assign('data', both)
    data_first = {'': Code('data')}
    yield assign('train_dataloader', dict(batch_size=recipe.batch_size, dataset=data_first | train))
    yield assign('val_dataloader', dict(dataset=data_first | val))
    yield 'test_dataloader = val_dataloader'
    if data.task is DETECTION:
        file = val['ann_file']
        code = file if isinstance(file, Code) else Code(f'data_root + {file!r}')
        yield assign('val_evaluator', dict(ann_file=code))
        yield 'test_evaluator = val_evaluator'


def _detection_pipelines(data: Data) -> Iterator[str]:
    width, height = data.size
    long, short = max(data.size), min(data.size)
    factor = min(COCO_ENLARGEMENT, COCO_LONG / long, COCO_SHORT / short)
    short = max(32, round(short * factor / 32) * 32)
    # room for elongated images, as in COCO's 1333×800
    long = min(COCO_LONG, max(round(long * factor), round(short * COCO_LONG / COCO_SHORT)))
    smallest = max(32, round(0.6 * short / 32) * 32)  # as 480 to 800 in the recipe for COCO
    yield f'# images are typically {width}×{height}; they are resized to at most {long}×{short}'
    yield 'train_pipeline = _base_.train_pipeline'
    yield 'train_pipeline[2] = dict('
    yield "    type='RandomChoiceResize',"
    yield f'    scales=[({long}, side) for side in range({smallest}, {short + 1}, 32)],'
    yield '    keep_ratio=True,'
    yield ')'
    yield 'test_pipeline = _base_.test_pipeline'
    yield f'test_pipeline[1].scale = ({long}, {short})'


def _segmentation_pipelines(data: Data) -> Iterator[str]:
    short = round(min(data.size) / 32) * 32
    short = min(max(short, SMALLEST_SEGMENTED), LARGEST_SEGMENTED)
    if abs(short - SEGMENTED) <= SEGMENTED / 4:
        return
    crop = min(short, SEGMENTED)
    width, height = data.size
    yield f'# images are typically {width}×{height}; the shorter edge is resized to {short}'
    yield f'scale = ({4 * short}, {short})'
    yield f'crop_size = ({crop}, {crop})'
    yield 'train_pipeline = _base_.train_pipeline'
    yield 'train_pipeline[2].scale = scale'
    yield 'train_pipeline[3].crop_size = crop_size'
    yield 'test_pipeline = _base_.test_pipeline'
    yield 'test_pipeline[1].scale = scale'


def _model(data: Data, arch: str, weights: str | None) -> Iterator[str]:
    if data.task is DETECTION:
        heads = ('bbox_head', 'mask_head') if data.has_masks else ('bbox_head',)
        model: dict[str, Any] = dict(roi_head={head: dict(NUM_CLASSES) for head in heads})
    elif data.task is SEGMENTATION:
        model = dict(decode_head=dict(NUM_CLASSES), auxiliary_head=dict(NUM_CLASSES))
        if any(_segmentation_pipelines(data)):
            model['data_preprocessor'] = dict(size=Code('crop_size'))
    else:
        model = dict(head=dict(NUM_CLASSES))
    backbone: dict[str, Any] = {}
    if arch != 'tiny':  # which is inherited
        backbone['arch'] = arch
        for part, stages in CHANNELS[data.task].items():
            channels = [ARCHS[arch].dims[stage] for stage in stages]
            in_channels = channels if len(channels) > 1 else channels[0]
            model.setdefault(part, {})['in_channels'] = in_channels
    if weights == 'none':
        backbone['init_cfg'] = None
    elif weights is not None:
        backbone['init_cfg'] = dict(checkpoint=weights)
    elif arch != 'tiny':
        backbone['init_cfg'] = dict(checkpoint=Code(f'_base_.nvidia_weights.format({arch!r})'))
    if backbone:
        model['backbone'] = backbone
    yield assign('model', model)
    if data.task is CLASSIFICATION:
        yield assign('data_preprocessor', NUM_CLASSES)


def _training(data: Data, recipe: Recipe, schedule: Schedule) -> Iterator[str]:
    size, epochs = recipe.batch_size, schedule.epochs
    images, iterations = data.train.images, schedule.iterations
    length = counted(iterations, 'iteration')
    yield f'# {counted(images, "image")}, {size} per batch: {length} per epoch'
    warmup = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=schedule.warmup)
    interval = schedule.val_interval
    if data.task is SEGMENTATION:
        interval *= iterations
        yield f'max_iters = {schedule.total}  # {counted(epochs, "epoch")}'
        yield assign('train_cfg', dict(max_iters=Code('max_iters'), val_interval=interval))
        decay = dict(type='PolyLR', power=1.0, by_epoch=False, begin=schedule.warmup)
        decay |= dict(end=Code('max_iters'), eta_min=0.0)
    else:
        yield f'max_epochs = {epochs}'
        yield assign('train_cfg', dict(max_epochs=Code('max_epochs'), val_interval=interval))
        # to 0, so that it is a factor of the warm-up's learning rate
        decay = dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0)
        decay |= dict(end=Code('max_epochs'), convert_to_iter_based=True)
    yield assign('param_scheduler', [warmup, decay])
    yield f'# the inherited {recipe.rate:g} for {recipe.rate_batch} images per iteration, scaled'
    yield '# with the square root of the batch size'
    yield assign('optim_wrapper', dict(optimizer=dict(lr=recipe.learning_rate)))
    yield assign('auto_scale_lr', dict(base_batch_size=size))
    hooks: dict[str, Any] = dict(checkpoint=dict(interval=interval))
    if iterations < LOG_INTERVAL:  # otherwise, the first line comes at the end of the epoch
        hooks['logger'] = dict(interval=max(1, iterations // 5))
    yield assign('default_hooks', hooks)


def assign(name: str, value: Any) -> str:
    """Return an assignment for a config file, on several lines if it is long."""
    line = f'{name} = {literal(value)}'
    return line if len(line) <= WIDTH else f'{name} = {_on_lines(value, "")}'


def literal(value: Any) -> str:
    """Return a value as an expression of a config file, on one line.

    The key '' of a dict stands for the positional argument of ``dict``.
    """
    if isinstance(value, Code):
        return value
    if isinstance(value, dict | list):
        begin, end, items = _parts(value)
        return f'{begin}{", ".join(f"{key}{literal(each)}" for key, each in items)}{end}'
    return repr(value)


def _on_lines(value: Any, indent: str) -> str:
    if not isinstance(value, dict | list):
        return literal(value)
    begin, end, items = _parts(value)
    inner, lines = f'{indent}    ', [begin]
    for key, each in items:
        text = literal(each)
        if len(f'{inner}{key}{text},') > WIDTH:
            text = _on_lines(each, inner)
        lines.append(f'{inner}{key}{text},')
    return '\n'.join([*lines, f'{indent}{end}'])


def _parts(value: dict[str, Any] | list[Any]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return beginning and end of a dict or list, and its values with what precedes each."""
    if isinstance(value, list):
        return '[', ']', [('', each) for each in value]
    return 'dict(', ')', [(f'{key}=' if key else '', each) for key, each in value.items()]
