"""Checks of a config's data, before hours are spent on it.

``config`` compares datasets, heads and evaluators. ``coco``, ``coco_annotations`` and
``coco_file`` check COCO annotations, ``segmentation`` label maps, and ``files`` images.
``training`` runs the fast part before training.
"""

from .config import check_data
from .report import Findings, Problem, Report
from .training import require_data

__all__ = ['Findings', 'Problem', 'Report', 'check_data', 'require_data']
