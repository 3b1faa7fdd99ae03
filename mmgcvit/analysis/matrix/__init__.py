"""The test matrix: the tests in environments with other versions, and the table of results."""

from .results import Result, Store, read_results, write_page
from .rows import ROWS, Row, find_python
from .running import cache_folder, expected_seconds, require_room, run_row

__all__ = [
    'ROWS',
    'Result',
    'Row',
    'Store',
    'cache_folder',
    'expected_seconds',
    'find_python',
    'read_results',
    'require_room',
    'run_row',
    'write_page',
]
