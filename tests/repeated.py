"""What mmengine does repeatedly, with the same result, made cheap in a process of the tests."""

import ast
import functools

from mmengine.config import config, utils


def remembering():
    """Return (module, name, function that takes the place of that name)."""
    found = [
        # All hundred model lists of mmdet are read for each ``mmdet::`` in a config, which takes
        # most of the time of reading one. The content is for reading only.
        (utils, 'load', functools.cache(utils.load)),
        # For these, all installed packages are listed for each ``mmdet::``.
        (config, 'is_installed', functools.cache(config.is_installed)),
        (config, 'get_installed_path', functools.cache(config.get_installed_path)),
    ]
    if hasattr(config, 'FormatCode'):  # onedl's mmengine imports it when it needs it
        # A config is laid out for the log and its file, which takes half a second per config.
        found.append((config, 'FormatCode', _without_layout))
    return found


def _without_layout(text, **settings):
    ast.parse(text)  # a SyntaxError as from yapf
    return text, True
