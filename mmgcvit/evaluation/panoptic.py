"""Panoptic quality, as in Kirillov et al., Panoptic Segmentation (CVPR 2019), with COCO's rules.

H, W: height and width of an image in pixels. C: number of classes. G, P: number of segments in the
ground truth and in the prediction.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmengine.evaluator import BaseMetric

from ..errors import UserError
from ..panoptic import segment_ids
from ..registry import METRICS

VOID = -1


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """Panoptic quality (PQ), segmentation quality (SQ) and recognition quality (RQ) in percent.

    Replacement for mmdet's ``CocoPanopticMetric``, with metrics of the same names, that does not
    need the package panopticapi, which is not on PyPI. ``PQ_th`` and ``PQ_st`` are the means over
    the classes of things and of stuff. Classes that are in neither the annotations nor
    the predictions are left out of the means.

    Args:
        ann_file: JSON file with the panoptic annotations.
        seg_prefix: Folder of their label maps.
        backend_args: Backend of mmengine that reads the files.
        collect_device: Device for collecting results from all processes: 'cpu' or 'gpu'.
        prefix: Prefix of the names of the metrics.
    """

    default_prefix = 'coco_panoptic'

    def __init__(
        self,
        ann_file: str,
        seg_prefix: str,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.seg_prefix = seg_prefix
        self.backend_args = backend_args
        content = fileio.load(ann_file, backend_args=backend_args)
        self.categories = content['categories']
        self.annotations = {each['image_id']: each for each in content['annotations']}

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Compare the predictions of a batch with the annotations.

        Args:
            data_batch: Not used.
            data_samples: Predictions, with ``pred_panoptic_seg.sem_seg`` of shape (1, H, W).
        """
        from mmdet.evaluation import INSTANCE_OFFSET

        classes = self.dataset_meta['classes']
        used = [category for category in self.categories if category['name'] in classes]
        labels = {category['id']: label for label, category in enumerate(used)}
        for sample in data_samples:
            annotation = self.annotations[sample['img_id']]
            path = os.path.join(self.seg_prefix, annotation['file_name'])
            content = np.frombuffer(fileio.get(path, backend_args=self.backend_args), np.uint8)
            image = cv2.imdecode(content, cv2.IMREAD_COLOR)
            if image is None:
                raise UserError(f'{path} is damaged or not an image: copy it again')
            colors = image[..., ::-1]
            segments = {
                each['id']: (labels.get(each['category_id'], VOID), bool(each.get('iscrowd')))
                for each in annotation['segments_info']
            }
            prediction = sample['pred_panoptic_seg']
            predicted = prediction['sem_seg'][0].cpu().numpy()
            ignored = {len(classes), prediction.get('ignore_index', len(classes))}
            predicted_labels = {
                number: VOID if number % INSTANCE_OFFSET in ignored else number % INSTANCE_OFFSET
                for number in np.unique(predicted).tolist()
            }
            self.results.append(
                compare(segment_ids(colors), segments, predicted, predicted_labels, len(classes))
            )

    def compute_metrics(self, results: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the metrics in percent.

        Args:
            results: Sums of each image, see :func:`compare`.
        """
        iou, matched, false, missed = np.sum(results, axis=0)
        counted = matched + false + missed > 0
        segmentation = iou / np.maximum(matched, 1)
        recognition = matched / np.maximum(matched + (false + missed) / 2, 1)
        things = {each['name'] for each in self.categories if each['isthing']}
        is_thing = np.array([name in things for name in self.dataset_meta['classes']])
        metrics = {}
        for suffix, chosen in (('', counted), ('_th', is_thing), ('_st', ~is_thing)):
            chosen = chosen & counted
            for name, values in (
                ('PQ', segmentation * recognition),
                ('SQ', segmentation),
                ('RQ', recognition),
            ):
                mean = values[chosen].mean() if chosen.any() else 0.0
                metrics[f'{name}{suffix}'] = 100 * float(mean)
        return metrics


def compare(
    truth: np.ndarray,
    segments: Mapping[int, tuple[int, bool]],
    predicted: np.ndarray,
    predicted_labels: Mapping[int, int],
    classes: int,
) -> np.ndarray:
    """Match the segments of an image.

    Two segments match if they have the same class and an IoU above 0.5. Pixels without a segment
    in the annotations do not count in the IoU. Annotated segments without pixels are missed, as in
    panopticapi. Predicted segments that lie mostly in pixels without a segment, or in crowds of
    their class, are not counted as false; crowds are not counted as missed.

    Args:
        truth: Id of each pixel's segment in the annotations, (H, W).
        segments: Label, and whether the segment is a crowd, by id. Other ids are unlabeled pixels.
        predicted: Id of each pixel's predicted segment, (H, W).
        predicted_labels: Label of each predicted id, ``VOID`` for pixels without a segment.
        classes: Number of classes.

    Returns:
        Sum of IoUs, and numbers of matched, false and missed segments, by class, (4, C).
    """
    listed = np.fromiter(segments, np.int64)  # some may have no pixel
    ids, positions = np.unique(np.concatenate([truth.ravel(), listed]), return_inverse=True)
    predicted_ids, predicted_positions = np.unique(predicted, return_inverse=True)
    pairs = positions[: truth.size] * len(predicted_ids) + predicted_positions.ravel()
    size = len(ids) * len(predicted_ids)
    overlap = np.bincount(pairs, minlength=size).reshape(len(ids), -1)  # pixels, (G, P)
    labels = np.array([segments.get(number, (VOID, False))[0] for number in ids.tolist()])
    crowd = np.array([segments.get(number, (VOID, False))[1] for number in ids.tolist()])
    found = np.array([predicted_labels[number] for number in predicted_ids.tolist()])

    without = overlap[labels == VOID].sum(0)
    areas = overlap.sum(0)
    union = overlap.sum(1)[:, None] + areas - overlap - without
    iou = overlap / np.maximum(union, 1)  # 0 only in pixels without a segment
    same = (labels[:, None] == found) & (labels != VOID)[:, None]
    matches = same & ~crowd[:, None] & (iou > 0.5)
    excused = without + (overlap * (same & crowd[:, None])).sum(0)

    false = (found != VOID) & ~matches.any(0) & (excused <= areas / 2)
    missed = (labels != VOID) & ~crowd & ~matches.any(1)
    row, column = np.nonzero(matches)
    return np.stack(
        [
            np.bincount(labels[row], weights=iou[row, column], minlength=classes),
            np.bincount(labels[row], minlength=classes),
            np.bincount(found[false], minlength=classes),
            np.bincount(labels[missed], minlength=classes),
        ]
    )
