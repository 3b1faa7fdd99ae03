"""GC ViT and the backbones that it is compared with, built by short names."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from ..models import ARCHS, GCViT
from ..weights.layouts import to_nvidia

WINDOW_SIZE = (24,) * 4
QUERY_DOWNSAMPLES = (3, 2, 1, 0)

# Swin by GC ViT size; ConvNeXt has sizes with the same names
SWIN = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}


class MissingPeer(Exception):
    """A backbone cannot be built here. The message states the reason."""


class PlainReference(nn.Module):
    """:mod:`mmgcvit.reference` with random weights, at the cost of the published network."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self._num_heads = ARCHS[arch].num_heads
        state = to_nvidia(gcvit(arch).state_dict())
        self._names = list(state)
        self.weights = nn.ParameterList(nn.Parameter(x) for x in state.values())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → the four feature maps."""
        weights = dict(zip(self._names, self.weights, strict=True))
        return reference.gcvit(weights, images, self._num_heads, WINDOW_SIZE, QUERY_DOWNSAMPLES)


def gcvit(arch: str) -> nn.Module:
    """Build this package's backbone as in the detection configs, but without drop path."""
    return GCViT(
        arch,
        window_size=WINDOW_SIZE,
        query_downsamples=QUERY_DOWNSAMPLES,
        drop_path_rate=0.0,
    )


def swin(arch: str) -> nn.Module:
    """Build mmdet's Swin that matches a GC ViT size."""
    if arch not in SWIN:
        raise MissingPeer(f'Swin has no counterpart of size {arch}')
    from mmdet.models import SwinTransformer

    return SwinTransformer(**SWIN[arch], drop_path_rate=0.0)


def convnext(arch: str) -> nn.Module:
    """Build mmpretrain's ConvNeXt that matches a GC ViT size."""
    if arch not in SWIN:
        raise MissingPeer(f'ConvNeXt has no counterpart of size {arch}')
    from mmpretrain.models import ConvNeXt

    return ConvNeXt(arch, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)


BACKBONES: dict[str, Callable[[str], nn.Module]] = {
    'gcvit': gcvit,
    'reference': PlainReference,
    'swin': swin,
    'convnext': convnext,
}
LIBRARIES = {'swin': 'mmdet.models', 'convnext': 'mmpretrain.models', 'timm': 'timm'}


def build_backbone(name: str, arch: str, shape: tuple[int, int]) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        name: One of ``BACKBONES``, or ``timm:NAME`` for a timm model.
        arch: Size of GC ViT. Other backbones have the corresponding size; timm's ignore it.
        shape: H and W of the images, which some timm models need.

    Raises:
        MissingPeer: If its package is not installed or it has no corresponding size.
    """
    import_libraries(name)
    torch.manual_seed(0)
    if name.startswith('timm:'):
        return _timm(name.removeprefix('timm:'), shape)
    return BACKBONES[name](arch)


def import_libraries(name: str) -> None:
    """Import the library of a backbone.

    Raises:
        MissingPeer: If its package is not installed.
    """
    try:
        if library := LIBRARIES.get(name.partition(':')[0]):
            importlib.import_module(library)
    except ImportError as error:
        raise MissingPeer(f'cannot be imported: {error}') from error


def _timm(name: str, shape: tuple[int, int]) -> nn.Module:
    import timm

    options: dict[str, Any] = dict(features_only=True, pretrained=False)
    try:
        return timm.create_model(name, img_size=shape, **options)
    except TypeError:
        # most models accept images of any size and do not have img_size
        return timm.create_model(name, **options)
    except RuntimeError as error:
        raise MissingPeer(f'timm cannot build {name}: {error}') from error
