"""Transforms that load annotations. This module needs mmdet."""

from typing import Any

from mmdet.datasets import transforms

from ..panoptic import segment_ids
from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadPanopticAnnotations(transforms.LoadPanopticAnnotations):
    """mmdet's transform of the same name, without the package panopticapi, which is not on PyPI.

    Args:
        with_bbox: Whether to load the boxes of things.
        with_label: Whether to load the labels of things.
        with_mask: Whether to load the masks of things.
        with_seg: Whether to load the label map of all classes.
        box_type: Box type of mmdet.
        imdecode_backend: Backend of mmcv that decodes the files.
        backend_args: Backend of mmengine that reads the files.
    """

    def __init__(
        self,
        with_bbox: bool = True,
        with_label: bool = True,
        with_mask: bool = True,
        with_seg: bool = True,
        box_type: str = 'hbox',
        imdecode_backend: str = 'cv2',
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        # skip the initializer of mmdet's class, which imports panopticapi
        transforms.LoadAnnotations.__init__(
            self,
            with_bbox=with_bbox,
            with_label=with_label,
            with_mask=with_mask,
            with_seg=with_seg,
            box_type=box_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )
        self.rgb2id = segment_ids
