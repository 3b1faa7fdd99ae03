"""Export of complete models to ONNX, from the pixels of an image to its predictions.

H, W: height and width of an image in pixels.
"""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import UserError, describe
from ..files import replacing, require_writable
from ..inference import TrainedModel
from ..task import CLASSIFICATION, SEGMENTATION
from ..version import __version__
from .image import ImageInput
from .parity import agreement
from .resizing import Crop, read_steps, refuse
from .runtime import OnnxModel, require_onnx

OPSET = 17  # the first with layer norms
EXAMPLE, OTHERS = (96, 128), ((75, 90), (130, 51))  # sizes of images: recorded, then run
LARGEST = 2_000_000_000  # bytes; protobuf files are limited to 2 GiB
# see agreement(); two results of the same operations differ in rounding, which NMS may amplify
AGREE, DETECTORS_AGREE = 0.98, 0.9


def require_out(out: Path) -> None:
    """Raise a UserError unless a model can be exported to a file."""
    if out.suffix != '.onnx':
        raise UserError(
            f'--out {out} is not the name of an .onnx file: pass one that ends with .onnx'
        )
    require_writable(out, '--out')


def build_graph(trained: TrainedModel, paste_masks: bool = False, resize: bool = True) -> nn.Module:
    """Return the module of a trained model that :func:`export_onnx` records.

    Args:
        trained: Detector, segmentor or classifier.
        paste_masks: Whether masks have the size of the image.
        resize: Whether the graph resizes images as the test pipeline does.

    Raises:
        UserError: If the model, its test pipeline or an option cannot be exported.
    """
    # each imports its library, of which users may have installed only one
    if trained.task is SEGMENTATION:
        from .segmentors import segmentor_graph

        build = segmentor_graph(trained.model)
    elif trained.task is CLASSIFICATION:
        from .classifiers import classifier_graph

        build = classifier_graph(trained.model)
    else:
        from .detectors import detector_graph

        build = detector_graph(trained.model, paste_masks)
    steps = read_steps(trained.dataset.pipeline.transforms)
    if trained.task is not CLASSIFICATION and any(isinstance(step, Crop) for step in steps):
        raise refuse('CenterCrop of images for detectors and segmentors', 'Resize')
    graph = build(ImageInput(trained.model.data_preprocessor, steps if resize else ()))
    if paste_masks and 'masks' not in graph.outputs:
        raise UserError(
            f'--paste-masks is for detectors with masks, and the model of {trained.cfg.filename} '
            'has none: remove the option'
        )
    return graph.eval()


def export_onnx(
    trained: TrainedModel,
    out: str | os.PathLike,
    paste_masks: bool = False,
    resize: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a trained model as ONNX, with its pre- and postprocessing.

    The input ``image`` is RGB, (H, W, 3), uint8, of any height and width. The outputs are those of
    :class:`.detectors.SingleStage`, :class:`.detectors.TwoStage`, :class:`.segmentors.Segmentor` or
    :class:`.classifiers.Classifier`. The class names are stored as JSON in ``metadata_props``.
    Before the file is written, the graph is checked, run at two other image sizes and compared with
    PyTorch. Weights of more than 2 GB are written to a second file, ``OUT.data``.

    Args:
        trained: Detector, segmentor or classifier.
        out: File to write, ``.onnx``.
        paste_masks: Whether masks have the size of the image.
        resize: Whether the graph resizes images as the test pipeline does.
        say: Called with each line of progress.

    Returns:
        The path of the file.

    Raises:
        UserError: If the model cannot be exported, ``out`` is not allowed, or onnx or onnxruntime
            is not installed.
    """
    out = Path(out)
    onnx, _ = require_onnx()
    require_out(out)
    graph = build_graph(trained, paste_masks, resize)
    if out.exists():
        say(f'{out} exists and will be replaced')
    say(f'recording the graph with an image of {EXAMPLE[1]}×{EXAMPLE[0]}')
    with replacing(out) as partial:
        raw = partial.parent / 'raw'
        raw.mkdir()
        _record(graph, raw / out.name, trained.cfg.filename)
        model = onnx.load(raw / out.name)
        onnx.helper.set_model_props(model, _metadata(trained, graph))
        data = f'{out.name}.data'
        is_large = sum(x.numel() * x.element_size() for x in graph.state_dict().values()) > LARGEST
        onnx.save(model, partial, save_as_external_data=is_large, location=data)
        del model
        onnx.checker.check_model(os.fspath(partial))
        for size in OTHERS:
            say(f'running the graph in ONNX Runtime with an image of {size[1]}×{size[0]}')
            _check_run(graph, partial, size)
        if is_large:  # before the file that refers to it
            os.replace(partial.parent / data, out.with_name(data))
    return out


def _noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _record(graph: nn.Module, path: Path, config: str) -> None:
    # The tracing exporter: the number of detections depends on the image, which torch.export
    # supports only partially, and versions of torch before 2.5 have no other one.
    options = dict(dynamo=False) if torch.__version__ >= (2, 5) else {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # the exporter is deprecated, and it warns about every check of a shape
            warnings.simplefilter('ignore')
            torch.onnx.export(
                graph,
                (torch.from_numpy(_noise(EXAMPLE)),),
                os.fspath(path),
                input_names=['image'],
                output_names=list(graph.outputs),
                dynamic_axes={'image': {0: 'height', 1: 'width'}, **graph.outputs},
                opset_version=OPSET,
                **options,
            )
    except (UserError, OSError):  # OSError: a full disk, for example
        raise
    except Exception as error:  # the exporter can raise anything
        raise UserError(
            f'the model of {config} cannot be exported ({describe(error)}): use one of the models '
            'listed in docs/export.md, or export only the backbone (docs/graph_modes.md)'
        ) from error


def _metadata(trained: TrainedModel, graph: nn.Module) -> dict[str, str]:
    """Return what programs need to use the model, as strings."""
    metadata = dict(
        task=trained.task.name,
        config=Path(trained.cfg.filename).name,
        classes=json.dumps(list(trained.classes)),
        mmgcvit=__version__,
        input='RGB, height x width x 3, uint8',
        resizes=json.dumps(bool(graph.image.steps)),
    )
    if 'masks' in graph.outputs:
        metadata['mask_threshold'] = str(trained.model.roi_head.test_cfg.mask_thr_binary)
    return metadata


def _check_run(graph: nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Run a graph at an image size other than the recorded one, and compare it with PyTorch."""
    image = _noise(size)
    try:
        found = OnnxModel(path)(image)
    except Exception as error:  # of the runtime
        raise UserError(
            f'the exported graph does not run on an image of {size[1]}×{size[0]} '
            f'({describe(error)}): use one of the models listed in docs/export.md'
        ) from error
    with torch.no_grad():
        outputs = graph(torch.from_numpy(image))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = {name: x.numpy() for name, x in zip(graph.outputs, outputs, strict=True)}
    agree, required = agreement(expected, found), DETECTORS_AGREE if 'boxes' in found else AGREE
    if agree < required:
        raise UserError(
            f'the predictions of the exported graph and of PyTorch agree to {agree:.0%} for an '
            f'image of {size[1]}×{size[0]}, and {required:.0%} are required. No file was written: '
            'use one of the models listed in docs/export.md'
        )
