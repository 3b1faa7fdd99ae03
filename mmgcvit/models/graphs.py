"""Whether what runs is being recorded: compiled, traced or exported."""

import torch


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export records a graph, for maps of other sides too."""
    # torch.compiler tells from version 2.7 on
    tell = getattr(torch.compiler, 'is_exporting', bool)
    return tell() or torch.onnx.is_in_onnx_export()


def is_recorded() -> bool:
    """Whether torch.compile, torch.jit or an export records: what it meets becomes constant."""
    # torch.compiler tells from version 2.3 on
    tell = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
    return tell() or torch.jit.is_tracing() or torch.jit.is_scripting() or is_exporting()
