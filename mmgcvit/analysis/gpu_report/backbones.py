"""The backbone alone: time and memory beside others, its attention, and its slowest kernels."""

import re
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ...errors import UserError
from ..backbone_speed import Settings, forward_pass, measure_backbone, training_step
from ..peers import build_backbone
from .job import Row

# PyTorch's operators behind scaled_dot_product_attention, and the autograd function for CPUs
OPERATOR = re.compile(r'aten::_scaled_dot_product_\w+|CPUAttention(Backward)?')
KERNELS = 10
LONGEST_NAME = 90


def describe_settings(settings: Settings) -> str:
    """Return the settings of a measurement in words."""
    compiled = ', compiled' if settings.compile else ''
    return f'{settings.name}{compiled}, {settings.arch}, {_image(settings)}, {settings.dtype}'


def _image(settings: Settings) -> str:
    return '×'.join(map(str, settings.shape))


def speed(settings: Settings) -> Iterator[list[Row]]:
    """Measure a backbone, see :func:`.measure_backbone`."""
    found = measure_backbone(settings)
    if found.note.startswith('failed'):
        raise RuntimeError(found.note)
    if found.note:
        raise UserError(found.note)
    yield [
        {
            'size': settings.arch,
            'image': _image(settings),
            'precision': settings.dtype,
            'backbone': settings.name + (', compiled' if settings.compile else ''),
            'forward (ms)': 1e3 * median(found.forward),
            'training step (ms)': 1e3 * median(found.training),
            'memory, forward (GB)': found.forward_memory / 1e9,
            'memory, training (GB)': found.training_memory / 1e9,
        }
    ]


def attention(settings: Settings) -> Iterator[list[Row]]:
    """List the operators that compute attention, for each shape of their inputs."""
    rows: list[Row] = []
    for mode in ('training', 'training, frozen tables', 'evaluation'):
        for event in _profile(settings, mode).key_averages(group_by_input_shape=True):
            if not OPERATOR.fullmatch(event.key):
                continue
            name = event.key.removeprefix('aten::_scaled_dot_product_')
            shapes = [str(tuple(shape)) for shape in event.input_shapes[:2] if shape]
            rows.append(
                {
                    'image': _image(settings),
                    'mode': mode,
                    'operator': f'`{name}`',
                    # of the query and the key, or the gradient and the query
                    'shapes of its first inputs': ', '.join(shapes),
                    'calls': event.count,
                }
            )
        yield rows
    if not rows:
        raise UserError('no operator for attention was called')


def kernels(settings: Settings) -> Iterator[list[Row]]:
    """List the kernels of a training step that take the most time; on a CPU, the operators."""
    cuda = settings.device == 'cuda'
    times = {}
    for event in _profile(settings, 'training').key_averages():
        # annotations last as long as the kernels within them, which would count twice
        annotation = getattr(event, 'is_user_annotation', event.key.startswith('Optimizer.'))
        if ('CUDA' in str(event.device_type)) == cuda and not annotation:
            # renamed in torch 2.4
            name = 'self_device_time_total' if cuda else 'self_cpu_time_total'
            name = name if hasattr(event, name) else 'self_cuda_time_total'
            times[event.key] = (getattr(event, name) / 1e3, event.count)
    total = sum(time for time, _ in times.values())
    if not total:
        raise UserError('the profiler has recorded no kernels')
    slowest = sorted(times.items(), key=lambda item: -item[1][0])[:KERNELS]
    everything = ('all', (total, sum(count for _, count in times.values())))
    yield [
        {
            'kernel': f'`{name[:LONGEST_NAME]}`' if name != 'all' else name,
            'launches': count,
            'time (ms)': time,
            'share (%)': 100 * time / total,
        }
        for name, (time, count) in [*slowest, everything]
    ]


def _profile(settings: Settings, mode: str) -> Any:
    """Profile a training step or a forward pass after another one."""
    model = build_backbone(settings.name, settings.arch, settings.shape).to(settings.device)
    model.train(mode != 'evaluation')
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (mode.endswith('tables') and name.endswith('bias_table')))
    images = torch.randn(settings.batch_size, 3, *settings.shape, device=settings.device)
    make_step = training_step if model.training else forward_pass
    step = make_step(model, images, settings)
    activities = [ProfilerActivity.CPU]
    if settings.device == 'cuda':
        activities.append(ProfilerActivity.CUDA)
    step()
    with profile(activities=activities, record_shapes=True) as result:
        step()
        if settings.device == 'cuda':
            torch.cuda.synchronize()
    return result
