from .page import draw, report, write_page
from .plan import BACKBONES, METHODS, METRICS, Plan, Training, require_equal_parameters
from .results import Curves, read_curves, write_curves
from .timing import measure_times, read_times
from .trainings import train_all

__all__ = [
    'BACKBONES',
    'METHODS',
    'METRICS',
    'Curves',
    'Plan',
    'Training',
    'draw',
    'measure_times',
    'read_curves',
    'read_times',
    'report',
    'require_equal_parameters',
    'train_all',
    'write_curves',
    'write_page',
]
