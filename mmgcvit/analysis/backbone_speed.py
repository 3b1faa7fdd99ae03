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
from .speed import peak_process_memory

DTYPES = ('float32', 'bfloat16', 'float16')


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        name: Name of a backbone, see :func:`.build_backbone`.
        arch: Size of GC ViT, and of the backbones beside it.
        shape: H and W of the images.
        batch_size: Images per step.
        device: 'cpu' or 'cuda'.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision.
        compile: Whether to compile it with torch.compile.
        warm_up: Steps of each kind before those that are measured.
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
    """Measurements of one backbone, or why there are none.

    Attributes:
        forward: Seconds of each forward pass in evaluation, without gradients.
        training: Seconds of each training step: forward, backward and AdamW.
        forward_memory: Bytes at the peak of the forward passes, without those used before the model
            was built: of tensors on a GPU, of the process on a CPU.
        training_memory: The same for the training steps.
        params: Parameters.
        macs: Multiply-accumulates of all products, for one image.
        note: Why there are no numbers, else empty.
    """

    forward: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    forward_memory: int = 0
    training_memory: int = 0
    params: int = 0
    macs: int = 0
    note: str = ''


def measure_backbone(settings: Settings) -> Measurement:
    """Measure a backbone. Call it in a new process, else memory on a CPU includes earlier peaks."""
    try:
        return _measure(settings)
    except MissingPeer as error:
        return Measurement(note=str(error))
    except torch.cuda.OutOfMemoryError:
        return Measurement(note='out of GPU memory')
    except Exception as error:
        # a peer may fail for any reason, such as the shape or the type: measure the others still
        text = str(error).strip() or type(error).__name__
        return Measurement(note=f'failed: {text.splitlines()[0][:200]}')


def _measure(settings: Settings) -> Measurement:
    found = Measurement()
    # first, so that their memory does not count as the model's
    import_libraries(settings.name)
    before = _peak_memory(settings.device)
    model = build_backbone(settings.name, settings.arch, settings.shape)
    found.params = sum(parameter.numel() for parameter in model.parameters())
    found.macs = count_macs(model, settings.shape)
    model = model.to(settings.device)
    network = torch.compile(model) if settings.compile else model
    images = torch.randn(settings.batch_size, 3, *settings.shape, device=settings.device)

    model.eval()
    found.forward = _time(_forward(network, images, settings), settings)
    found.forward_memory = _peak_memory(settings.device) - before
    model.train()
    found.training = _time(_training_step(network, images, settings), settings)
    # the peak of a process never falls, but systems report it to within some pages
    found.training_memory = max(_peak_memory(settings.device) - before, found.forward_memory)
    return found


def count_macs(model: nn.Module, shape: tuple[int, int]) -> int:
    """Count the multiply-accumulates of all products for one image, without computing any."""
    model = copy.deepcopy(model).to('meta')
    # in a line of its own: train() and eval() of mmdet's Swin return None
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *shape, device='meta'))
    return counter.get_total_flops() // 2


def _forward(model: nn.Module, images: Tensor, settings: Settings) -> Callable[[], None]:
    def step() -> None:
        with torch.no_grad(), _precision(settings):
            model(images)

    return step


def _training_step(model: nn.Module, images: Tensor, settings: Settings) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with _precision(settings):
            loss = sum(output.float().square().mean() for output in model(images))
        loss.backward()
        optimizer.step()

    return step


def _precision(settings: Settings) -> contextlib.AbstractContextManager:
    dtype = getattr(torch, settings.dtype)
    return torch.autocast(settings.device, dtype, enabled=settings.dtype != 'float32')


def _time(step: Callable[[], None], settings: Settings) -> list[float]:
    """Return the seconds of each measured step."""
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
    if device == 'cuda':
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    return peak_process_memory()
