"""Configs for users' own folders of annotated images.

``project`` detects the format of a folder and writes the project. ``coco``, ``yolo``, ``voc``,
``label_maps`` and ``class_folders`` each read one format; ``label_values`` and ``label_names`` read
the pixels of label maps and the names of their classes. ``detection`` writes the annotations of
objects, ``folder`` lists the files, ``names`` interprets their names, and ``splits`` divides them
into training and validation.
``recipes`` and ``config`` write the config.
"""

from .project import FORMATS, new_project

__all__ = ['FORMATS', 'new_project']
