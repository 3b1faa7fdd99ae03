"""GC ViT as a backbone of Detectron2, with named feature maps.

Without Detectron2, the class has the same interface but not the base class.
"""

from typing import NamedTuple

from torch import Tensor, nn

from ..models import GCViT

try:
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone
except ModuleNotFoundError as error:
    if error.name != 'detectron2':
        raise
    Backbone = nn.Module

    class ShapeSpec(NamedTuple):
        """The fields of Detectron2's ShapeSpec."""

        channels: int | None = None
        height: int | None = None
        width: int | None = None
        stride: int | None = None


class Detectron2GCViT(GCViT, Backbone):
    """GC ViT that returns a dict, with the arguments of :class:`mmgcvit.GCViT`.

    The maps have the names of those of Detectron2's ResNets, which many configs use: 'res2' to
    'res5', with strides 4 to 32.

    Example:
        >>> from detectron2.modeling.backbone import FPN
        >>> from mmgcvit.integrations.detectron2 import Detectron2GCViT
        >>> names = ['res2', 'res3', 'res4', 'res5']
        >>> backbone = FPN(Detectron2GCViT('tiny'), names, out_channels=256)
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) → one map (B, C_i, ⌈H/s⌉, ⌈W/s⌉) for each name and stride s."""
        return dict(zip(self.output_shape(), super().forward(images), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the number of channels and the stride of each map."""
        return {
            f'res{i + 2}': ShapeSpec(channels=channels, stride=stride)
            for i, channels, stride in zip(
                self.out_indices, self.out_channels, self.strides, strict=True
            )
        }
