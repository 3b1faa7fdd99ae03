"""Time and memory of a backbone's forward pass and training step."""

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .peers import MissingPeer, build_backbone, import_libraries
from .speed import peak_memory

DTYPES = ('float32', 'bfloat16', 'float16')


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        name: Name of a backbone, see :func:`.build_backbone`.
        arch: Size of GC ViT. Other backbones have the corresponding size.
        shape: H and W of the images.
        batch_size: Images per step.
        device: 'cpu' or 'cuda'.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision.
        compile: Whether to compile the backbone with torch.compile.
        warm_up: Warm-up steps of each kind.
        runs: Measured steps of each kind.
    """

    name: str
    arch: str = 'tiny'
    shape: tuple[int, int] = (800, 1280)
    batch_size: int = 1
    device: str = 'cpu'
    dtype: str = 'float32'
    compile: bool = False
    warm_up: int = 1
    runs: int = 3


@dataclass
class Measurement:
    """Measurements of one backbone, or the reason why there are none.

    Attributes:
        forward: Seconds per forward pass in evaluation mode, without gradients.
        training: Seconds per training step: forward, backward and AdamW.
        forward_memory: Peak bytes of the forward passes minus the bytes used before the model was
            built. Allocated tensors on a GPU, process memory on a CPU.
        training_memory: The same for the training steps.
        params: Number of parameters.
        macs: Multiply-accumulates of all products for one image.
        note: Reason why there are no numbers; empty otherwise.
    """

    forward: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    forward_memory: int = 0
    training_memory: int = 0
    params: int = 0
    macs: int = 0
    note: str = ''


def measure_backbone(settings: Settings) -> Measurement:
    """Measure a backbone. Call this in a new process: CPU memory includes earlier peaks."""
    try:
        return _measure(settings)
    except MissingPeer as error:
        return Measurement(note=str(error))
    except torch.cuda.OutOfMemoryError:
        return Measurement(note='out of GPU memory')
    except Exception as error:
        # a peer may fail for any reason, such as the shape or dtype; the others are still measured
        text = str(error).strip() or type(error).__name__
        return Measurement(note=f'failed: {text.splitlines()[0][:200]}')


def _measure(settings: Settings) -> Measurement:
    found = Measurement()
    # imported first, so that their memory does not count as memory of the model
    import_libraries(settings.name)
    before = _peak_memory(settings.device)
    model = build_backbone(settings.name, settings.arch, settings.shape)
    found.params = sum(parameter.numel() for parameter in model.parameters())
    found.macs = count_macs(model, settings.shape)
    model = model.to(settings.device)
    network = torch.compile(model) if settings.compile else model
    images = torch.randn(settings.batch_size, 3, *settings.shape, device=settings.device)

    model.eval()
    found.forward = _time(forward_pass(network, images, settings), settings)
    # Linux updates a process's peak in batches, so that it may read slightly below `before`
    found.forward_memory = max(_peak_memory(settings.device) - before, 0)
    model.train()
    found.training = _time(training_step(network, images, settings), settings)
    # the peak of a process never decreases, but it is only accurate to a few pages
    found.training_memory = max(_peak_memory(settings.device) - before, found.forward_memory)
    return found


def count_macs(model: nn.Module, shape: tuple[int, int]) -> int:
    """Count the multiply-accumulates of all products for one image, from shapes only."""
    model = copy.deepcopy(model).to('meta')
    # not chained: train() and eval() of mmdet's Swin return None
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *shape, device='meta'))
    return counter.get_total_flops() // 2


def forward_pass(model: nn.Module, images: Tensor, settings: Settings) -> Callable[[], None]:
    """Return a function that runs a forward pass of (B, 3, H, W) images without gradients."""

    def step() -> None:
        with torch.no_grad(), _precision(settings):
            model(images)

    return step


def training_step(model: nn.Module, images: Tensor, settings: Settings) -> Callable[[], None]:
    """Return a function that runs a training step on (B, 3, H, W) images, with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with _precision(settings):
            loss = sum(output.float().square().mean() for output in model(images))
        loss.backward()
        optimizer.step()

    return step


def _precision(settings: Settings) -> contextlib.AbstractContextManager:
    if settings.dtype == 'float32':
        return contextlib.nullcontext()
    return torch.autocast(settings.device, getattr(torch, settings.dtype))


def _time(step: Callable[[], None], settings: Settings) -> list[float]:
    """Return the time of each measured step in seconds."""
    for _ in range(settings.warm_up):
        step()
    clock = _time_on_gpu if settings.device == 'cuda' else _time_on_cpu
    return [clock(step) for _ in range(settings.runs)]


def _time_on_cpu(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _time_on_gpu(step: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _peak_memory(device: str) -> int:
    peak = peak_memory(device)
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    return peak
