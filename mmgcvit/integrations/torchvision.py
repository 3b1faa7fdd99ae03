"""GC ViT with a feature pyramid, for torchvision's detectors (torchvision 0.16 and later)."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from ..models import GCViT


class GCViTWithFPN(nn.Module):
    """Counterpart of torchvision's ``BackboneWithFPN``, which cannot run GC ViT.

    ``BackboneWithFPN`` runs the children of a backbone one after the other, so it supports only
    sequential networks.

    Args:
        body: Backbone.
        out_channels: Number of channels of each feature map.
        extra_blocks: Block that adds further maps. None adds one with
            :class:`torchvision.ops.feature_pyramid_network.LastLevelMaxPool`.
        norm_layer: Norm of the pyramid's convolutions. None means no norm.

    Attributes:
        out_channels (int): Number of channels of each feature map. torchvision's detectors read it.

    Example:
        >>> from torchvision.models.detection import MaskRCNN
        >>> from mmgcvit import GCViT
        >>> from mmgcvit.integrations.torchvision import GCViTWithFPN
        >>> model = MaskRCNN(GCViTWithFPN(GCViT('tiny')), num_classes=91)
    """

    def __init__(
        self,
        body: GCViT,
        out_channels: int = 256,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            list(body.out_channels), out_channels, extra_blocks or LastLevelMaxPool(), norm_layer
        )
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps of the pyramid.

        Args:
            images: (B, C, H, W), with H and W at least 1.

        Returns:
            Maps named '0', '1', ... in the order of ``body.out_indices``, each
            (B, out_channels, ⌈H/s⌉, ⌈W/s⌉) for its stride s, then the maps of ``extra_blocks``,
            such as 'pool'.
        """
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.body(images))))
