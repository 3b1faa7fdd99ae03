"""Export of detectors, segmentors and classifiers to ONNX, and inference in ONNX Runtime."""

from .export import build_graph, export_onnx, require_out
from .report import compare, open_images
from .runtime import OnnxModel

__all__ = ['OnnxModel', 'build_graph', 'compare', 'export_onnx', 'open_images', 'require_out']
