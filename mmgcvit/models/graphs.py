"""Whether what runs is being recorded: compiled, traced, exported or transformed."""

import torch
from torch.fx.experimental import symbolic_shapes


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export records a graph."""
    # torch.compiler tells from version 2.7 on
    tell = getattr(torch.compiler, 'is_exporting', lambda: False)
    return tell() or torch.onnx.is_in_onnx_export()


def is_recorded() -> bool:
    """Whether torch.compile, torch.jit, an export or a transform of torch.func records.

    What it meets becomes constant, and it can see into plain operations only.
    """
    # torch.compiler tells from version 2.3 on
    is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
    return (
        is_compiling()
        or torch.jit.is_tracing()
        or torch.jit.is_scripting()
        or is_exporting()
        or _is_transforming()
    )


def _is_transforming() -> bool:
    tell = getattr(torch._C, '_are_functorch_transforms_active', lambda: False)
    return tell()


def serves_other_sides(height: int, width: int) -> bool:
    """Whether what is recorded is for maps of other sides than these too."""
    if torch.jit.is_tracing():
        # it is not told which sides are to be dynamic
        return torch.onnx.is_in_onnx_export()
    if not is_recorded():
        return False
    # old versions of torch do not tell
    is_fixed = getattr(symbolic_shapes, 'has_static_value', None)
    if is_fixed is None:
        return is_exporting()
    return not (is_fixed(height) and is_fixed(width))
