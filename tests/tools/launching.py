"""What the tests of commands for several processes share."""

import json
from pathlib import Path

from mmgcvit.engine.optimizers.mixed_precision import has_bfloat16
from mmgcvit.visualization import read_training_log

# in the log of a training in mixed precision on this CPU
MIXED = 'in bfloat16' if has_bfloat16('cpu') else 'this CPU has no instructions for bfloat16'
ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data'
CONFIGS = DATA / 'configs'
UPERNET = CONFIGS / 'upernet_tiny.py'


def script(name, *arguments):
    return ['bash', ROOT / 'tools' / name, *arguments]


def metrics_of_test(work_dir):
    """The metrics that tools/test.py left behind."""
    (file,) = work_dir.glob('*/*.json')
    metrics = json.loads(file.read_text())
    return {name: value for name, value in metrics.items() if 'time' not in name}


def metrics_of_validation(work_dir):
    """The metrics of a training's last validation."""
    metrics = read_training_log(work_dir).metrics
    return {name: list(values.values())[-1] for name, values in metrics.items()}
