"""In each of several processes: gradients averaged by DDP, beside those of the whole batch."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from mmgcvit import GCViT
from mmgcvit.engine import run_tool
from mmgcvit.engine.device import fit_to_cpu
from mmgcvit.engine.launch import start_processes


def backward(model: nn.Module, images: Tensor) -> None:
    sum(level.square().mean() for level in model(images)).backward()


def main() -> None:
    cfg = Config(dict(launcher='pytorch'))
    fit_to_cpu(cfg, start_processes(cfg, 'cpu'))
    rank, processes = get_dist_info()
    torch.manual_seed(0)
    arch = dict(
        embed_dims=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        mlp_ratio=2,
        layer_scale_init_value=0.5,
    )
    alone = GCViT(arch, window_size=4)
    images = torch.randn(2 * processes, 3, 96, 128)
    model = deepcopy(alone)
    # as the Runner does
    together = MODEL_WRAPPERS.build(cfg.model_wrapper_cfg, default_args=dict(module=model))
    backward(together, images.chunk(processes)[rank])
    backward(alone, images)
    wanted = {name: p.grad for name, p in alone.named_parameters()}
    found = {name: p.grad for name, p in model.named_parameters()}
    result = dict(
        tensors=len(found),
        scale=max(g.abs().max().item() for g in wanted.values()),
        error=max((found[n] - wanted[n]).abs().max().item() for n in wanted),
    )
    Path(sys.argv[1], f'rank_{rank}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    run_tool(main)
