# What all configs in this folder have, as mmdet's own configs of this style do.
default_scope = None
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
