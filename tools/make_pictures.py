"""Make the pictures of docs/visualization.md with the checkpoint of tools/quickstart.sh.

python tools/make_pictures.py
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mmgcvit.engine import find_checkpoint, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'docs/images'
IMAGE = 'data/shapes/coco/val2017/000000000043.jpg'
CONFIG = 'configs/detection/mask_rcnn_gcvit_shapes.py'
WORK_DIR = 'work_dirs/quickstart'
# options of tools/visualize.py, and the pictures of its output that the page shows
PICTURES = {
    '': {'sheet.png': 'sheet.png', 'queries.png': 'queries.png'},
    '--stage 1 --block 1': {'attention_stage1_block1_global.png': 'attention.png'},
    '--stage 2 --type global --token 330 120': {
        'attention_stage2_block3_global_x330_y120.png': 'token.png'
    },
    # the number of a detection depends on the training
    '--stage 1 --cam rectangle': {'cam_stage1_detection*_rectangle.png': 'cam.png'},
}
BITS = 5  # per color channel, which keeps the files below 150 kB


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    checkpoint = find_checkpoint(ROOT / WORK_DIR)
    if checkpoint is None or not (ROOT / IMAGE).is_file():
        missing = f'{WORK_DIR} has no checkpoint' if checkpoint is None else f'{IMAGE} is missing'
        raise UserError(f'{missing}: run bash tools/quickstart.sh first')
    with tempfile.TemporaryDirectory() as folder:
        for number, (options, pictures) in enumerate(PICTURES.items()):
            out = Path(folder, str(number))
            command = [sys.executable, 'tools/visualize.py', IMAGE, CONFIG, str(checkpoint)]
            command += [*options.split(), '--out', str(out)]
            if subprocess.run(command, cwd=ROOT).returncode:
                raise UserError(f'{" ".join(command)} failed, see the output above')
            for name, picture in pictures.items():
                (made,) = out.glob(name)
                content = with_few_colors(made.read_bytes())
                print(write_atomically(FOLDER / picture, content).relative_to(ROOT), flush=True)


def with_few_colors(png: bytes) -> bytes:
    """Return a PNG file whose colors are rounded to ``BITS`` bits per channel."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    levels = 2**BITS - 1
    image = (np.round(image * (levels / 255)) * (255 / levels)).astype(np.uint8)
    return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


if __name__ == '__main__':
    run_tool(main)
