"""Which tracer, compiler or transform is active: see docs/graph_modes.md."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.fx.experimental import symbolic_shapes


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export records a graph."""
    # torch.compiler reports it from version 2.7 on
    exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
    return exporting() or torch.onnx.is_in_onnx_export()


def is_compiling() -> bool:
    """Whether torch.compile records a graph, or torch.export through it."""
    # torch.compiler reports it from version 2.3 on
    compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
    return compiling()


def is_recorded() -> bool:
    """Whether torch.compile, torch.jit or an export records.

    Python values become constants of the graph, and only tensor operations are recorded.
    """
    return is_compiling() or torch.jit.is_tracing() or is_exporting()


def is_transformed() -> bool:
    """Whether torch.func transforms a function, or forward-mode derivatives are computed."""
    active = getattr(torch._C, '_are_functorch_transforms_active', lambda: False)
    return active() or forward_ad._current_level >= 0


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether a tensor of a CPU is computed with at once, and is of no subclass of its own."""
    is_on_cpu = type(x) in (Tensor, nn.Parameter) and x.device.type == 'cpu'
    return is_on_cpu and not (is_recorded() or is_transformed())


def serves_other_sizes(height: int, width: int) -> bool:
    """Whether the recorded graph is for feature maps of other heights and widths as well."""
    if torch.jit.is_tracing():
        # a trace cannot know which images it will be given
        return True
    if not is_recorded():
        return False
    # versions of torch before 2.4 do not report it
    is_fixed = getattr(symbolic_shapes, 'has_static_value', None)
    if is_fixed is None:
        return is_exporting()
    return not (is_fixed(height) and is_fixed(width))


def fx_leaf(function: Callable) -> Callable:
    """Make a function one node of the graphs that torch.fx traces, which cannot see into it."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for argument in args:
            if isinstance(argument, Proxy):
                return argument.tracer.create_proxy('call_function', call, args, kwargs)
        return function(*args, **kwargs)

    return call
