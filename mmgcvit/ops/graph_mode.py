"""Detection of active tracers, compilers and transforms, see docs/graph_modes.md."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.fx.experimental import symbolic_shapes


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export is recording a graph."""
    # torch.compiler.is_exporting exists since torch 2.7
    exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
    return exporting() or torch.onnx.is_in_onnx_export()


def is_compiling() -> bool:
    """Whether torch.compile is recording a graph, including on behalf of torch.export."""
    # torch.compiler.is_compiling exists since torch 2.3
    compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
    return compiling()


def is_recorded() -> bool:
    """Whether torch.compile, torch.jit.trace or an export is recording a graph.

    Only tensor operations are recorded. Python values become constants of the graph.
    """
    return is_compiling() or torch.jit.is_tracing() or is_exporting()


def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    active = getattr(torch._C, '_are_functorch_transforms_active', lambda: False)
    return active() or forward_ad._current_level >= 0


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations on ``x`` run eagerly on a CPU, and ``x`` is not of a tensor subclass."""
    is_on_cpu = type(x) in (Tensor, nn.Parameter) and x.device.type == 'cpu'
    return is_on_cpu and not (is_recorded() or is_transformed())


def serves_other_sizes(height: int, width: int) -> bool:
    """Whether the graph being recorded must also support other heights and widths."""
    if torch.jit.is_tracing():
        # a trace does not know the sizes of its future inputs
        return True
    if not is_recorded():
        return False
    # torch < 2.4 does not expose whether a dimension is dynamic
    is_fixed = getattr(symbolic_shapes, 'has_static_value', None)
    if is_fixed is None:
        return is_exporting()
    return not (is_fixed(height) and is_fixed(width))


def fx_leaf(function: Callable) -> Callable:
    """Wrap a function so that torch.fx records a call as one node instead of tracing into it."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for argument in args:
            if isinstance(argument, Proxy):
                return argument.tracer.create_proxy('call_function', call, args, kwargs)
        return function(*args, **kwargs)

    return call
