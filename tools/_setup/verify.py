"""Imports what was installed and runs an operator; the last line is the versions as JSON."""

import json

import mmcv
import mmdet
import mmengine
import mmpretrain
import mmseg
import torch
import torchvision
from mmcv.ops import nms

import mmgcvit

modules = (torch, torchvision, mmengine, mmcv, mmdet, mmseg, mmpretrain, mmgcvit)

devices = ['cpu']
try:
    from mmcv.ops import get_compiling_cuda_version

    with_cuda = get_compiling_cuda_version() != 'not available'
except ImportError:
    with_cuda = False
if with_cuda and torch.cuda.is_available():
    devices.append('cuda')
for device in devices:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)[1]
    if kept.tolist() != [0, 2]:
        raise SystemExit(f'error: mmcv.ops.nms on {device} kept {kept.tolist()}, not [0, 2]')

print(json.dumps({module.__name__: module.__version__ for module in modules}))
