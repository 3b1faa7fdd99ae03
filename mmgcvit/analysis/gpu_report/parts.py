"""The parts of the report, and the sizes of their measurements on a GPU and in a rehearsal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ..backbone_speed import Settings
from ..doc_tables import METHODS
from . import backbones, machine, trainings
from .job import Job

FOLDERS = {'mask-rcnn': 'detection', 'cascade-mask-rcnn': 'detection', 'upernet': 'segmentation'}
BACKBONES = ('gcvit', 'reference', 'swin', 'convnext', 'timm:gcvit_{}')


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        device: 'cuda' or 'cpu'.
        archs: Sizes of the backbones, in the order of measurement.
        sizes: The same sizes in the names of configs.
        shapes: H and W of the backbones' images.
        dtypes: Precisions of the backbones.
        compiled: Sizes that are also measured with torch.compile.
        runs: Numbers of warm-up steps and of measured steps of a backbone.
        steps: The same of a training.
        side: Longest side of the images in trainings; 0 for the sizes of the config.
        resumed: Steps of the training that is resumed.
        tests: Patterns of the test files.
    """

    device: str = 'cuda'
    archs: tuple[str, ...] = ('tiny', 'small', 'base')
    sizes: tuple[str, ...] = ('s', 't', 'b')
    shapes: tuple[tuple[int, int], ...] = ((800, 1280), (512, 512))
    dtypes: tuple[str, ...] = ('bfloat16', 'float16')
    compiled: tuple[str, ...] = ('tiny', 'small', 'base')
    batch_size: int = 2
    runs: tuple[int, int] = (3, 10)
    steps: tuple[int, int] = (4, 12)
    side: int = 0
    resumed: int = 20
    tests: tuple[str, ...] = (
        'tests/models/test_gpu*.py',
        'tests/engine/test_gpu*.py',
        'tests/ops/test_window_attention.py',
        'tests/ops/test_triton_attention.py',
    )

    @property
    def is_rehearsal(self) -> bool:
        """Whether the numbers mean nothing."""
        return self.device == 'cpu'

    def settings(self) -> Settings:
        """Return the settings of the first backbone."""
        warm_up, runs = self.runs
        return Settings(
            'gcvit',
            self.archs[0],
            self.shapes[0],
            self.batch_size,
            self.device,
            self.dtypes[0],
            warm_up=warm_up,
            runs=runs,
        )


GPU = Plan()
REHEARSAL = Plan(
    device='cpu',
    archs=('xxtiny',),
    sizes=('xxt',),
    shapes=((64, 96),),
    dtypes=('float32',),  # not all CPUs have instructions for bfloat16
    compiled=(),
    batch_size=1,
    runs=(0, 1),
    steps=(1, 1),
    side=96,
    resumed=2,
    tests=GPU.tests[:2],
)


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        title: Its heading.
        text: What its table shows.
        share: Its share of the time; parts that need less leave it to the next ones.
        jobs: Function that returns its measurements, from the plan and a temporary folder.
    """

    title: str
    text: str
    share: float
    jobs: Callable[[Plan, Path], list[Job]]


def _environment(plan: Plan, folder: Path) -> list[Job]:
    return [Job('check_env.py', machine.environment)]


def _tests(plan: Plan, folder: Path) -> list[Job]:
    return [Job('pytest', machine.gpu_tests, {'patterns': plan.tests})]


def _trainings(plan: Plan, folder: Path) -> list[Job]:
    names = [
        f'{FOLDERS[method]}/{METHODS[method].format(size)}.py'
        for size, method in product(plan.sizes, ('cascade-mask-rcnn', 'mask-rcnn', 'upernet'))
    ]
    options = dict(folder=folder, steps=plan.steps, side=plan.side)
    return [Job(Path(name).stem, trainings.training, {'config': name, **options}) for name in names]


def _resume(plan: Plan, folder: Path) -> list[Job]:
    options = dict(folder=folder, steps=plan.resumed)
    resumed = dict(name='resumed', resumed_from='complete', **options)
    return [
        Job('complete', trainings.train_classifier, {'name': 'complete', **options}, fresh=True),
        Job('resumed', trainings.train_classifier, resumed, fresh=True),
    ]


def _attention(plan: Plan, folder: Path) -> list[Job]:
    return [
        Job(backbones.describe_settings(settings), backbones.attention, {'settings': settings})
        for shape in plan.shapes
        for settings in [replace(plan.settings(), shape=shape)]
    ]


def _kernels(plan: Plan, folder: Path) -> list[Job]:
    settings = plan.settings()
    return [Job(backbones.describe_settings(settings), backbones.kernels, {'settings': settings})]


def _backbones(plan: Plan, folder: Path) -> list[Job]:
    first = plan.settings()
    all_settings = [
        replace(first, name=name.format(arch), arch=arch, shape=shape, dtype=dtype)
        for dtype, shape, arch, name in product(plan.dtypes, plan.shapes, plan.archs, BACKBONES)
    ]
    # last, because compilation takes minutes
    all_settings += [replace(first, arch=arch, compile=True) for arch in plan.compiled]
    return [
        Job(backbones.describe_settings(each), backbones.speed, {'settings': each}, each.compile)
        for each in all_settings
    ]


def _bandwidth(plan: Plan, folder: Path) -> list[Job]:
    return [Job('all-reduce', machine.bandwidth, {'device': plan.device, 'folder': folder})]


# in the order in which they run
PARTS = {
    'environment': Part('Environment', 'Hardware and software.', 0.05, _environment),
    'tests': Part('Tests that need a GPU', 'Results of pytest.', 0.22, _tests),
    'trainings': Part(
        'Training steps of the published configs',
        'Each config runs with its own runner, batch size, precision and augmentations, and '
        'without pretrained weights, on drawn images of 200 to 480 pixels, which the pipeline '
        'enlarges. Memory is the peak of allocated tensors. Data workers keep up if their number '
        'times the rate of one worker is above images/s. The schedule is the 3x schedule on the '
        f'{trainings.COCO_IMAGES} images of COCO, at the measured rate and without validation; '
        '8 GPUs are assumed to be 8 times as fast as one.',
        0.25,
        _trainings,
    ),
    'resume': Part(
        'Resuming in deterministic mode',
        '`configs/classification/gcvit_shapes.py` in mixed precision. The checkpoint after half of '
        'the steps is resumed in a new process; the last checkpoints of both trainings are '
        'compared.',
        0.08,
        _resume,
    ),
    'attention': Part(
        'Operators that compute attention',
        "The operators of PyTorch behind `scaled_dot_product_attention`, from profiles of GC ViT's "
        'training step and forward pass. With frozen tables, position biases do not learn.',
        0.05,
        _attention,
    ),
    'profile': Part(
        'The kernels that take the most time',
        'A training step of the backbone: forward and backward pass and AdamW.',
        0.05,
        _kernels,
    ),
    'backbones': Part(
        'Backbones',
        'Medians. `reference` is the same network in plain operations. Memory is the peak of '
        'allocated tensors.',
        0.25,
        _backbones,
    ),
    'bandwidth': Part(
        'All-reduce between GPUs',
        '`busbw` is the bandwidth b in `docs/scaling.md`.',
        0.05,
        _bandwidth,
    ),
}
