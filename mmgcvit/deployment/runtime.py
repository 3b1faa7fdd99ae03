"""Exported models in ONNX Runtime.

H, W: height and width of an image in pixels.
"""

import json
import os
from types import ModuleType

import numpy as np
import torch

from ..errors import UserError


def require_onnx() -> tuple[ModuleType, ModuleType]:
    """Return the packages onnx and onnxruntime.

    Raises:
        UserError: If one of them is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f'the package {error.name} is not installed, but exports need it: run '
            "`pip install 'mmgcvit[export]'`, or `pip install onnx onnxruntime`"
        ) from error
    return onnx, onnxruntime


class OnnxModel:
    """An exported model on the CPU, with the same number of threads as PyTorch.

    Args:
        path: File written by :func:`.export_onnx`.

    Attributes:
        outputs: Names of the outputs.
        classes: Name of each class.
        resizes: Whether the graph resizes images as the test pipeline does.
        mask_thr: Probability above which a pixel belongs to the mask.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        _, onnxruntime = require_onnx()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are also raised
        self.session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=['CPUExecutionProvider']
        )
        self.outputs = [output.name for output in self.session.get_outputs()]
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes = json.loads(metadata['classes'])
        self.resizes = json.loads(metadata['resizes'])
        self.mask_thr = float(metadata.get('mask_threshold', 0.5))

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Run the model on an image.

        Args:
            image: RGB, (H, W, 3), uint8.

        Returns:
            Maps names of outputs → outputs.
        """
        found = self.session.run(self.outputs, {'image': np.ascontiguousarray(image)})
        return dict(zip(self.outputs, found, strict=True))
