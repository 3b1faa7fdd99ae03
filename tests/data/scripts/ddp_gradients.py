"""In each of several processes: gradients averaged by DDP, beside those of the whole batch."""

import json
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from mmgcvit import GCViT
from mmgcvit.engine import run_tool
from mmgcvit.engine.adaptations import adapt_cpu
from mmgcvit.engine.device import Machine
from mmgcvit.engine.launch import start_processes

# xxtiny with fewer channels: depths, heads and windows as published
ARCH = dict(
    embed_dims=16,
    depths=(2, 2, 6, 2),
    num_heads=(2, 4, 8, 16),
    mlp_ratio=3,
    layer_scale_init_value=0.5,
)


def backward(model: nn.Module, images: Tensor) -> None:
    sum(level.square().mean() for level in model(images)).backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def main() -> None:
    cfg = Config(dict(launcher='pytorch'))
    adapt_cpu(cfg, Machine('cpu', start_processes(cfg, 'cpu')))
    # torch would warn in the first step of a process only
    torch.set_warn_always(True)
    warnings.filterwarnings('error', 'Grad strides do not match bucket view strides')
    rank, processes = get_dist_info()
    torch.manual_seed(0)
    alone = GCViT(ARCH)
    images = torch.randn(2 * processes, 3, 96, 128)
    models = [deepcopy(alone) for _ in range(2)]
    backward(alone, images)
    wanted = gradients(alone)
    results = []
    for model, gradient_as_bucket_view in zip(models, (False, True), strict=True):
        # as the Runner does
        settings = dict(module=model, gradient_as_bucket_view=gradient_as_bucket_view)
        together = MODEL_WRAPPERS.build(cfg.model_wrapper_cfg, default_args=settings)
        # DDP regroups parameters into buckets after the first step
        for _ in range(2):
            model.zero_grad()
            backward(together, images.chunk(processes)[rank])
            found = gradients(model)
            result = dict(
                tensors=len(found),
                scale=max(g.abs().max().item() for g in wanted.values()),
                error=max((found[n] - wanted[n]).abs().max().item() for n in wanted),
            )
            results.append(result)
    Path(sys.argv[1], f'rank_{rank}.json').write_text(json.dumps(results))


if __name__ == '__main__':
    run_tool(main)
