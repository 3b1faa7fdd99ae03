"""Reading and writing videos frame by frame.

H, W: height and width of a frame in pixels.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

CODEC = 'mp4v'  # MPEG-4 part 2, which OpenCV's packages for pip can write
DEFAULT_RATE = 25.0  # frames per second of videos that state no rate


class VideoFrames:
    """The frames of a video file, BGR, (H, W, 3), uint8.

    Attributes:
        rate: Frames per second.
        number: Number of frames that the file states, 0 if unknown.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._capture = cv2.VideoCapture(os.fspath(path))
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and rate > 0 else DEFAULT_RATE
        # some containers do not state it, and OpenCV then returns a negative number
        self.number = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames in order.

        Raises:
            UserError: If OpenCV can read none.
        """
        count = 0
        try:
            while (read := self._capture.read())[0]:
                yield read[1]
                count += 1
        finally:
            self._capture.release()
        if not count:
            raise UserError(
                f'{self.path} has no frames that OpenCV can read: the file is empty, damaged, or '
                'in a format that this OpenCV does not support; convert it, for example with '
                f'ffmpeg -i {self.path.name} -c:v libx264 converted.mp4'
            )


class VideoWriter:
    """An MP4 file that is written frame by frame. Use it as a context manager, which closes it.

    Args:
        path: File to write.
        rate: Frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, picture: np.ndarray) -> None:
        """Append a frame.

        Args:
            picture: RGB, (H, W, 3), uint8. The last row or column of an odd size is cut off, which
                the codec does not support.

        Raises:
            UserError: If OpenCV cannot write such a video.
        """
        height, width = (max(2, length // 2 * 2) for length in picture.shape[:2])
        if self._writer is None:
            self._size = (width, height)
            code = cv2.VideoWriter_fourcc(*CODEC)  # type: ignore[attr-defined]  # missing in its stubs
            self._writer = cv2.VideoWriter(str(self.path), code, self.rate, self._size)
            if not self._writer.isOpened():
                raise UserError(
                    f'{self.path.name} cannot be written: this OpenCV {cv2.__version__} has no '
                    f'encoder {CODEC} for MP4 (cv2.getBuildInformation()); install '
                    'opencv-python-headless from PyPI, or process the frames as images'
                )
        frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)[:height, :width]
        if frame.shape[1::-1] != self._size:  # the encoder would drop it
            frame = cv2.resize(frame, self._size)
        self._writer.write(np.ascontiguousarray(frame))
