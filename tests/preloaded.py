"""The last module that the server of forks imports: it leaves the forks less to do."""

import gc
from pathlib import Path

import repeated
from mmengine.config import Config
from mmengine.utils.dl_utils import collect_env

for module, name, function in repeated.remembering():
    setattr(module, name, function)
collect_env()  # which imports what it reads versions from
# which reads mmdet's lists
Config.fromfile(Path(__file__).parents[1] / 'configs/detection/mask_rcnn_gcvit_shapes.py')
# Collections of garbage would look through all that is imported, in each fork, and copy it by that.
# mmengine makes one for every dataset.
gc.collect()
gc.freeze()
