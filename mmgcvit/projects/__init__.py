"""Configs for users' own folders of annotated images.

``project`` chooses the format of a folder and writes the project. ``coco``, ``yolo``, ``voc``,
``label_maps`` and ``class_folders`` read a format each, with ``detection`` for objects, ``folder``
for the files, and ``splits`` for training and validation. ``recipes`` and ``config`` make the
config.
"""

from .. import registry  # noqa: F401  (reports a missing mmengine)
from .project import FORMATS, new_project

__all__ = ['FORMATS', 'new_project']
