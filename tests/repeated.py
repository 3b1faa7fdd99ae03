"""What mmengine does anew each time, with the same result, done once in a process of the tests."""

import functools

from mmengine.config import config, utils


def remembering():
    """Return (module, name, function that takes the place of that name)."""
    found = [
        # All hundred model lists of mmdet are read for each ``mmdet::`` in a config, which takes
        # most of the time of reading one. The content is for reading only.
        (utils, 'load', functools.cache(utils.load)),
    ]
    if hasattr(config, 'FormatCode'):  # onedl's mmengine imports it when it needs it
        # A config is laid out for the log, for its file and for each checkpoint.
        found.append((config, 'FormatCode', _layout_once(config.FormatCode)))
    return found


def _layout_once(layout):
    done = {}

    def once(text, **settings):
        if text not in done:
            done[text] = layout(text, **settings)
        return done[text]

    return once
