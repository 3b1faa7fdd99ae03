"""tools/train.py, whose second process finds the data of $OTHER_SHAPES."""

import os
import runpy
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / 'tools' / 'train.py'

sys.path.insert(0, str(TOOL.parent))  # as Python does for a script
if os.environ['RANK'] == '1':
    os.environ['SHAPES'] = os.environ['OTHER_SHAPES']
runpy.run_path(str(TOOL), run_name='__main__')
