"""Say whether the Python that runs this file can carry the environment.

Older Pythons run it too, so it keeps to syntax that all of them know.
"""

import os
import sys


def complaint():
    version = '.'.join(str(part) for part in sys.version_info[:3])
    if not (3, 10) <= tuple(sys.version_info[:2]) <= (3, 12):
        return 'is Python ' + version
    import sysconfig

    lacking = []
    for module in ('venv', 'ensurepip'):
        try:
            __import__(module)
        except ImportError:
            lacking.append(module)
    if not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
        lacking.append('headers (Python.h)')
    return 'is Python ' + version + ' but lacks ' + ' and '.join(lacking) if lacking else ''


# The interpreter under a virtual environment is the one to build on: the
# environment may be deleted while the set-up runs.
print(complaint() or 'ok\t' + getattr(sys, '_base_executable', sys.executable))
