"""Convolutional parts: fused MBConv, stem and downsampler (paper, section 3.1 and figure of the
architecture).

B: batch size, H, W: sides of a map, C: channels. A map has channels last, (B, H, W, C), between
modules; only :class:`FusedMBConv` works on (B, C, H, W), as convolutions do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graphs import is_recorded


class SqueezeExcitation(nn.Module):
    """Compute a gate for each channel from all channels' means (Hu et al., 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 4, bias=False)
        self.fc2 = nn.Linear(dim // 4, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C), from 0 to 1."""
        return self.fc2(F.gelu(self.fc1(x.mean((2, 3))))).sigmoid()


class FusedMBConv(nn.Module):
    """Residual block of a depthwise convolution, squeeze-excitation and a pointwise one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.se = SqueezeExcitation(dim)
        self.pwconv = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        y = F.gelu(self.dwconv(x))
        gate = self.se(y)
        if not self._is_plain():
            return x + self.pwconv(y * gate[:, :, None, None])
        # Scaling the channels that a pointwise convolution takes is scaling its weights: C² values
        # an image and not H·W·C. As a product of matrices it adds to x without another map.
        weight = self.pwconv.weight.flatten(1) * gate[:, None]
        out = torch.baddbmm(_as_tokens(x), _as_tokens(y), weight.transpose(1, 2))
        return out.view_as(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _is_plain(self) -> bool:
        """Whether calling ``pwconv`` does nothing but the convolution, and nobody records it."""
        if is_recorded():
            return False
        conv = self.pwconv
        hooks = (conv._forward_pre_hooks, conv._forward_hooks, conv._backward_hooks)
        return type(conv) is nn.Conv2d and not any(hooks)


def _as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C), a view where channels are last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class Downsampler(nn.Module):
    """Halve the sides of a map, with a fused MBConv before the strided convolution."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.mbconv = FusedMBConv(in_dim)
        self.reduction = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_dim) → (B, ⌈H/2⌉, ⌈W/2⌉, out_dim)."""
        x = self.norm1(x).permute(0, 3, 1, 2)
        x = self.reduction(self.mbconv(x))
        return self.norm2(x.permute(0, 2, 3, 1))


class Stem(nn.Module):
    """Turn images into the first stage's map, at a quarter of their sides."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.downsample = Downsampler(dim, dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, dim)."""
        # its output then is in the layout that all others have, and needs no copy
        images = images.contiguous(memory_format=torch.channels_last)
        return self.downsample(self.conv(images).permute(0, 2, 3, 1))
