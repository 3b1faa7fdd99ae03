"""Whether what runs is being recorded: compiled, traced or exported."""

import torch


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export records a graph, for maps of other sides too."""
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
