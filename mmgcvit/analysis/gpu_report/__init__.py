"""A report of everything that this package does on a GPU, measured by one command."""

from .parts import GPU, PARTS, REHEARSAL, Plan
from .run import write_report

__all__ = ['GPU', 'PARTS', 'REHEARSAL', 'Plan', 'write_report']
