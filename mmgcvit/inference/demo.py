"""Predictions for images, folders and videos, drawn and as JSON."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..engine import known_error
from ..errors import UserError, describe, place, printable
from ..evaluation.tile_options import TileOptions
from ..files import replacing, write_atomically
from ..progress import duration, time_left
from .inferencers import Inferencer, Result, build_inferencer
from .inputs import Input, find_inputs
from .model import load_trained
from .video import VideoFrames, VideoWriter

SECONDS = 10  # between two lines of progress within a video


def run_demo(
    path: str | os.PathLike,
    config: str | os.PathLike,
    checkpoint: str,
    out: str | os.PathLike | None = None,
    score_thr: float | None = None,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    tiles: TileOptions | None = None,
) -> None:
    """Predict and draw an image, a video, or all images and videos of a folder and its subfolders.

    The outputs of ``sub/a.jpg`` are ``sub/a.jpg.png``, the image with its predictions,
    ``sub/a.jpg.json`` and, for segmentors, ``sub/a.jpg.labels.png``, whose pixels are the indices
    of the classes. Those of ``b.avi`` are ``b.avi.mp4``, ``b.avi.jsonl`` with one line per frame
    and, for segmentors, a folder ``b.avi.labels`` with one file per frame. Each file has its name
    only when it is complete. One line per file is printed.

    Args:
        path: Image, video or folder.
        config: See :func:`load_trained`, also for ``checkpoint``, ``device`` and ``options``.
        checkpoint: Path or URL of a checkpoint.
        out: Folder of the outputs. Defaults to ``work_dirs/CONFIG_NAME/demo``.
        score_thr: See :func:`build_inferencer`.
        device: 'cpu', 'cuda' or 'cuda:N'.
        options: Settings that override the config.
        tiles: Predict each image in tiles, see :meth:`.TrainedModel.in_tiles`.

    Raises:
        UserError: If an argument is wrong, or files were skipped because they cannot be read. The
            other files are processed first.
    """
    out = Path('work_dirs', Path(config).stem, 'demo') if out is None else Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f'--out {out} is a file: pass the name of a folder')
    inputs = find_inputs(path, out)
    trained = load_trained(config, checkpoint, device, options)
    if tiles:
        trained = trained.in_tiles(tiles)
    inferencer = build_inferencer(trained, score_thr)
    _announce(inputs, out)
    skipped = 0
    began = time.monotonic()
    for number, each in enumerate(inputs, 1):
        try:
            summary = _process(inferencer, each, out)
        except Exception as error:  # the libraries can raise anything for an image
            text = known_error(error)
            fails_always = text is None and skipped == number - 1
            if fails_always or isinstance(error, OSError) or len(inputs) == 1:
                raise  # OSError: a full disk, for example
            skipped += 1
            summary = f'skipped: {text or f"{describe(error)} ({place(error)})"}'
        left = time_left(began, number, len(inputs))
        count = f'{number}/{len(inputs)} ' if len(inputs) > 1 else ''
        _say(f'{count}{each.name}: {summary}{f" ({duration(left)} left)" if left else ""}')
    if skipped:
        raise UserError(
            f'{skipped} of {len(inputs)} files were skipped, see the lines above: correct or '
            f'remove them; the results of the others are in {out}'
        )
    print(f'results: {out}')


def _say(line: str) -> None:
    # names of files may have control characters
    print(printable(line).replace('\n', '\\n'), flush=True)


def _suffixes(each: Input) -> tuple[str, ...]:
    return ('.mp4', '.jsonl', '.labels') if each.is_video else ('.png', '.json', '.labels.png')


def _announce(inputs: Sequence[Input], out: Path) -> None:
    """Print which existing files of earlier runs are replaced."""
    outputs = (each.output(out, suffix) for each in inputs for suffix in _suffixes(each))
    existing = [path for path in outputs if path.exists()]
    if existing:
        names = ', '.join(str(path.relative_to(out)) for path in existing[:3])
        more = ', …' if len(existing) > 3 else ''
        _say(f'{len(existing)} existing files in {out} are replaced: {names}{more}')


def _process(inferencer: Inferencer, each: Input, out: Path) -> str:
    """Write the outputs of a file, and return the summary of its predictions."""
    if each.is_video:
        return _process_video(inferencer, each, out)
    result = inferencer.infer(each.path)
    record = dict(image=each.name, **result.record)
    if result.label_map is not None:
        labels = each.output(out, '.labels.png')
        write_atomically(labels, _png(result.label_map))
        record['label_map'] = labels.name
    write_atomically(each.output(out, '.png'), _png(result.picture[..., ::-1]))
    write_atomically(each.output(out, '.json'), json.dumps(record).encode())
    return result.summary


def _process_video(inferencer: Inferencer, each: Input, out: Path) -> str:
    frames = VideoFrames(each.path)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(replacing(each.output(out, s))) for s in _suffixes(each)]
        video, records, labels = files
        writer = stack.enter_context(VideoWriter(video, frames.rate))
        lines = stack.enter_context(open(records, 'w'))
        number = 0
        for number, result in enumerate(_results(inferencer, each, frames), 1):
            writer.write(result.picture)
            record = dict(frame=number, time=(number - 1) / frames.rate, **result.record)
            if result.label_map is not None:
                file = labels / f'{number:08d}.png'
                write_atomically(file, _png(result.label_map))
                record['label_map'] = f'{labels.name}/{file.name}'
            lines.write(json.dumps(record) + '\n')
    if number < frames.number:  # not an error: some containers state a wrong number
        return f'{number} frames; the file states {frames.number}, so it may be truncated'
    return f'{number} frames'


def _results(inferencer: Inferencer, each: Input, frames: VideoFrames) -> Iterator[Result]:
    """Yield the predictions for each frame, and print the progress from time to time."""
    began = said = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # the config's pipeline loads files; this format is lossless and fast
        file = Path(folder, 'frame.bmp')
        for number, frame in enumerate(frames, 1):
            cv2.imwrite(str(file), frame)
            yield inferencer.infer(file)
            now = time.monotonic()
            if now - said > SECONDS:
                said = now
                left = time_left(began, number, frames.number)
                total = f'/{frames.number} ({duration(left)} left)' if left > 0 else ''
                _say(f'{each.name}: frame {number}{total}')


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode('.png', image)[1].tobytes()
