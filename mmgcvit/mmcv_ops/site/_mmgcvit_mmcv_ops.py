"""Import hook that provides mmgcvit's operators as ``mmcv._ext`` if there is no other such module.

pip installs this file at the top level of site-packages, together with a .pth file that imports it
whenever Python starts. Thus other programs, such as mmdet's tools and data loader workers, find the
operators too. To keep the start of Python fast, this module imports almost nothing. pip removes it
when it uninstalls mmgcvit.
"""

import os
import sys

TYPE_CHECKING = False  # type checkers assume True; typing itself is not imported
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class MmcvExtFinder:
    """A finder at the end of ``sys.meta_path``, which Python uses after all others have failed."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> 'ModuleSpec | None':
        if name != 'mmcv._ext':
            return None
        from importlib.util import find_spec, spec_from_file_location

        package = find_spec('mmgcvit')
        # find_spec may return an unrelated folder named mmgcvit instead of the package
        for folder in (package and package.submodule_search_locations) or ():
            file = os.path.join(folder, 'mmcv_ops', '_ext.py')
            if os.path.isfile(file):
                return spec_from_file_location(name, file)
        return None


def enable() -> None:
    """Register the finder in this process, if it is not registered yet."""
    if not any(getattr(finder, '__name__', '') == 'MmcvExtFinder' for finder in sys.meta_path):
        sys.meta_path.append(MmcvExtFinder)
