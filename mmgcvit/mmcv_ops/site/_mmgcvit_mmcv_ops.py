"""Lets Python find the operators of mmgcvit as ``mmcv._ext`` where nothing else has that module.

pip installs this file beside the packages, with a .pth file that imports it whenever Python starts:
other programs find the operators too, mmdet's tools or data workers for example. So it imports
nothing at that time, and pip removes it with mmgcvit.
"""

import os
import sys


class MmcvExtFinder:
    """A finder for the end of ``sys.meta_path``, which is asked when no other one has a module."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != 'mmcv._ext':
            return None
        from importlib.util import find_spec, spec_from_file_location

        package = find_spec('mmgcvit')
        # a folder of that name may have been found instead of the package
        for folder in package.submodule_search_locations if package else ():
            file = os.path.join(folder, 'mmcv_ops', '_ext.py')
            if os.path.isfile(file):
                return spec_from_file_location(name, file)
        return None


def enable():
    """Add the finder to this process, once."""
    if not any(getattr(finder, '__name__', '') == 'MmcvExtFinder' for finder in sys.meta_path):
        sys.meta_path.append(MmcvExtFinder)
