"""Train a config whose third step fails in one process. Arguments: config, work dir, fault, rank.

The fault is made in the batch, because the data check would find one in the files.
"""

import os
import sys

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from mmgcvit.engine import build_runner, load_config, record_failed_step, run_tool
from mmgcvit.engine.options import parse_value

config, work_dir, fault, rank, *options = sys.argv[1:]


class Spoil(Hook):
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != 2 or get_rank() != int(rank):
            return
        sample = data_batch['data_samples'][0]
        if fault == 'image':
            data_batch['inputs'][0] = data_batch['inputs'][0].float()
            data_batch['inputs'][0][:, 5, 7] = torch.inf
        elif 'gt_instances' in sample:
            sample.gt_instances.labels[0] = 999
        else:
            sample.gt_sem_seg.data[:] = 231


def main():
    cfg = load_config(config, work_dir)
    settings = (option.split('=') for option in options)
    cfg.merge_from_dict({name: parse_value(value) for name, value in settings})
    cfg.custom_hooks, cfg.custom_imports = [], None  # which save weights at the end
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=100)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
    cfg.log_processor = dict(by_epoch=False)
    cfg.launcher = 'pytorch' if 'RANK' in os.environ else 'none'
    runner = build_runner(cfg)
    runner.register_hook(Spoil())
    with record_failed_step(runner):
        runner.train()


run_tool(main)
