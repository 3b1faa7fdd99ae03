"""Configs for users' own folders of annotated images.

``project`` detects the format of a folder and writes the project. ``coco``, ``yolo``, ``voc``,
``label_maps`` and ``class_folders`` each read one format. ``detection`` writes the annotations of
objects, ``folder`` lists the files, and ``splits`` divides them into training and validation.
``recipes`` and ``config`` write the config.
"""

from .project import FORMATS, new_project

__all__ = ['FORMATS', 'new_project']
