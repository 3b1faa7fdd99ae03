"""Estimates of the memory of a training step, from a few measurements.

A network needs memory for its parameters, and per image for activations of the backbone and of the
rest of the network. The rest hardly depends on the size of the backbone, so it is measured once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..models import ARCHS
from .doc_tables import Table, markdown, sizes_of

# GB per parameter: weights, gradients and the two moments of AdamW in float32
STATE = 16e-9
# the backbones that were measured on the GPU, for those that were not
NEAREST = {'xxtiny': 'tiny', 'xtiny': 'tiny', 'tiny2': 'tiny', 'small2': 'small', 'large': 'base'}
GPU_MEMORY = (6, 8, 10, 12, 16, 24)  # GB
SHARE = 0.85  # of a GPU's memory that is for tensors; the rest is for CUDA and fragmentation
QUANTITY = 'memory in training'  # of the rows of ``gpu``
# in the rows of ``memory-networks``
CPU = 'CPU, float32'
ALONE = 'backbone `xxtiny`'
DETECTION = '800×1280'


class TrainingMemory:
    """Estimates of the peak memory of a training step with AdamW, in GB.

    Args:
        measured: Tables of measurements by name. Each has ``rows``, lists of cells such as
            '1.23 GB'. ``memory-backbones`` has the columns arch, parameters, and memory in float32
            on a CPU with one image of 512×512, and as a classifier with 8 images of 224×224.
            ``memory-networks`` has the columns network, device, image, images per step, and memory:
            of networks with ``xxtiny`` and of this backbone alone on a CPU, and of one detector
            with ``tiny`` on a GPU. ``gpu`` has the columns arch, image, quantity, and memory of 2
            images in mixed precision.
        params: Numbers of parameters by network.
    """

    def __init__(
        self, measured: Mapping[str, Mapping[str, Any]], params: Mapping[str, int]
    ) -> None:
        self.params = params
        self.states, self.cpu, self.classifiers = {}, {}, {}
        for cell, count, memory, classifier in measured['memory-backbones']['rows']:
            arch = cell.strip('`')
            self.states[arch] = STATE * 1e6 * number(count)
            self.cpu[arch] = number(memory) - self.states[arch]
            self.classifiers[arch] = number(classifier)
        self.gpu = {
            (arch, image): (number(memory) - self.states[arch]) / 2
            for arch, image, quantity, memory, *_ in filled(measured['gpu']['rows'])
            if quantity == QUANTITY and arch in self.states
        }
        networks = measured['memory-networks']['rows']
        on_cpu = [(name, *row) for name, device, *row in networks if device == CPU]
        (self.on_gpu,) = [(name, *row) for name, device, *row in networks if device != CPU]
        alone = {
            image: number(memory) - self.states['xxtiny']
            for name, image, _, memory in on_cpu
            if name == ALONE
        }
        self.heads = {
            method_of(name): (number(memory) - STATE * params[name]) / int(images) - alone[image]
            for name, image, images, memory in on_cpu
            if name != ALONE
        }

    def detector(self, name: str, arch: str, images: int) -> float:
        """Return the memory of a detector in mixed precision at 800×1280.

        Backbones that were not measured on the GPU are scaled from the nearest one, by the ratio
        of both on the CPU. The heads are counted in float32.
        """
        activations = self.backbone(arch, NEAREST.get(arch, arch)) + self.heads[method_of(name)]
        return STATE * self.params[name] + images * activations

    def segmentor(self, name: str, arch: str, images: int) -> float:
        """Return the memory of a segmentor in float32 at 512×512."""
        activations = self.cpu[arch] + self.heads[method_of(name)]
        return STATE * self.params[name] + images * activations

    def classifier(self, name: str, arch: str, images: int) -> float:
        """Return the memory of a classifier in float32 at 224×224."""
        state = STATE * self.params[name]
        return state + images * (self.classifiers[arch] - state) / 8

    def backbone(self, arch: str, measured: str, image: str = DETECTION) -> float:
        """Return the activations of a backbone in mixed precision on a GPU, from a measured one."""
        return self.gpu[measured, image] * self.cpu[arch] / self.cpu[measured]

    def checks(self) -> Iterator[tuple[str, str, float, float]]:
        """Yield a name, an image size, the measured and the estimated memory on a GPU."""
        for (arch, image), activations in self.gpu.items():
            if arch != 'tiny':
                estimate = self.states[arch] + 2 * self.backbone(arch, 'tiny', image)
                yield f'`{arch}` from `tiny`', image, self.states[arch] + 2 * activations, estimate
        name, image, images, memory = self.on_gpu
        yield name, image, number(memory), self.detector(name, 'tiny', int(images))


def method_of(name: str) -> str:
    """Return the method in the name of a config, such as 'mask-rcnn'."""
    return name.partition('_')[0]


def number(cell: str) -> float:
    """Return the number in a cell with a unit, such as 4.17 for '4.17 GB'."""
    return float(cell.split()[0])


def filled(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows in which the first two cells, if empty, are those of the row above."""
    result: list[list[str]] = []
    for row in rows:
        above = result[-1] if result else row
        result.append([cell or above[i] if i < 2 else cell for i, cell in enumerate(row)])
    return result


def estimates(memory: TrainingMemory, models: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Return the estimated memory of training steps in GB, by kind of training and arch."""
    kinds = {
        'Mask R-CNN, 2 images of 800×1280': ('mask-rcnn', memory.detector, 2),
        'Cascade Mask R-CNN, 2 images of 800×1280': ('cascade-mask-rcnn', memory.detector, 2),
        'UPerNet, 2 images of 512×512': ('upernet', memory.segmentor, 2),
        'classifier, 32 images of 224×224': ('classifier', memory.classifier, 32),
    }
    return {
        kind: {
            arch: estimate(network['Name'], arch, images)
            for arch, network in sizes_of(method, models).items()
        }
        for kind, (method, estimate, images) in kinds.items()
    }


def memory_tables(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Table]:
    """Return functions that generate the tables of docs/choosing.md, by name."""

    def memory_of(models: Sequence[dict]) -> TrainingMemory:
        return TrainingMemory(measured, {m['Name']: m['Metadata']['Parameters'] for m in models})

    def memory(models: Sequence[dict]) -> str:
        """Return the table of the estimated memory of training steps."""
        kinds = estimates(memory_of(models), models)
        rows = [[f'`{a}`', *(f'{by[a]:.1f} GB' for by in kinds.values())] for a in ARCHS]
        return markdown(['size', *kinds], rows)

    def largest(models: Sequence[dict]) -> str:
        """Return the table of the largest size that fits on a GPU."""
        kinds = estimates(memory_of(models), models)
        rows = []
        for gpu in GPU_MEMORY:
            fitting = [[f'`{a}`' for a in ARCHS if by[a] <= SHARE * gpu] for by in kinds.values()]
            rows.append([f'{gpu} GB', *(archs[-1] if archs else 'none' for archs in fitting)])
        return markdown(['GPU', *kinds], rows)

    def check(models: Sequence[dict]) -> str:
        """Return the table of estimates of what was measured on a GPU."""
        rows = []
        for what, image, found, estimate in memory_of(models).checks():
            numbers = [f'{found:.2f} GB', f'{estimate:.2f} GB', f'{estimate / found - 1:+.0%}']
            rows.append([f'{what}, 2 images of {image}', *numbers])
        return markdown(['training step in bfloat16', 'measured', 'estimated', 'difference'], rows)

    return {'largest-size': largest, 'training-memory': memory, 'memory-check': check}
