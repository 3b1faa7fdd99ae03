"""Checking a config's data before hours are spent on it."""

from .config import check_data
from .report import Findings, Problem, Report
from .training import require_data

__all__ = ['Findings', 'Problem', 'Report', 'check_data', 'require_data']
