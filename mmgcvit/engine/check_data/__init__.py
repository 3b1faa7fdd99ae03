"""Checks of a config's data, before hours are spent on it.

A check is a generator of problems and notes. ``coco`` checks COCO annotations, with ``masks``,
``label_maps`` segmentation datasets, ``image_folders`` classification datasets, and ``config`` and
``classifiers`` whether datasets, heads and evaluators agree.
``split`` builds a dataset and opens its images with its own classes, ``checking`` runs the checks.
"""

from .checking import NAMES, check_data, require_data
from .report import Counts, Note, Problem, Report
from .split import find_evaluators

__all__ = [
    'NAMES',
    'Counts',
    'Note',
    'Problem',
    'Report',
    'check_data',
    'find_evaluators',
    'require_data',
]
