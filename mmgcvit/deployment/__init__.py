"""Models for other runtimes: complete detectors and segmentors as ONNX."""

from .export import build_graph, export_onnx
from .runtime import OnnxModel

__all__ = ['OnnxModel', 'build_graph', 'export_onnx']
