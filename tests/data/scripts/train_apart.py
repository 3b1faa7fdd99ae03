"""tools/train.py, each process in a folder of its own: `train_apart.py FOLDER ARGUMENTS`."""

import os
import runpy
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / 'tools' / 'train.py'

sys.path.insert(0, str(TOOL.parent))  # as Python does for a script
os.chdir(Path(sys.argv.pop(1)) / os.environ['RANK'])
runpy.run_path(str(TOOL), run_name='__main__')
