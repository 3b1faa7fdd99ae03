"""Three processes of which some differ, fail or are late, as the only argument says."""

import os
import sys
import time

import torch
from mmengine.config import Config

from mmgcvit.engine import exchange, run_tool
from mmgcvit.engine.launch import start_processes
from mmgcvit.errors import UserError

RANK = int(os.environ['RANK'])


def main() -> None:
    kind = sys.argv[1]
    cfg = Config(dict(launcher='pytorch', model=dict(type='GCViT', size=1)))
    cfg.data_root = f'/disk{RANK}/coco'
    if 'arrive' in kind or 'join' in kind:
        cfg.env_cfg = dict(dist_cfg=dict(timeout=2))
        exchange.SAME_TIMEOUT = 2
    if RANK == 1 and kind == 'another config':
        cfg.model.size = 2
    if RANK == 1 and kind == 'one does not join':
        time.sleep(60)
    start_processes(cfg, 'cpu')
    if RANK == 1 and kind == 'one does not arrive':
        time.sleep(60)
    if RANK and kind == 'two fail':
        raise UserError('the disk is full')
    torch.distributed.all_reduce(torch.ones(3))


if __name__ == '__main__':
    run_tool(main)
