"""Names of the pictures that tools/test.py --show-dir paints; tests/tools has real ones."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.structures import BaseDataElement

from mmgcvit.visualization import PaintPredictions


@pytest.mark.parametrize('prefix', ['img', 'img_path'])
def test_images_of_one_name_in_two_folders_are_two_pictures(tmp_path, prefix):
    painted = []
    root = tmp_path / 'images'
    samples = []
    for name in ('a/1.png', 'b/1.png'):
        (root / name).parent.mkdir(parents=True)
        cv2.imwrite(str(root / name), np.zeros((4, 4, 3), np.uint8))
        samples.append(BaseDataElement(metainfo=dict(img_path=str(root / name))))
    visualizer = SimpleNamespace(
        add_datasample=lambda name, *_, **settings: painted.append(settings)
    )
    dataset = SimpleNamespace(data_prefix={prefix: str(root)})
    runner = SimpleNamespace(
        visualizer=visualizer, test_dataloader=SimpleNamespace(dataset=dataset)
    )
    PaintPredictions(tmp_path / 'out').after_test_iter(runner, 0, outputs=samples)
    files = [settings['out_file'] for settings in painted]
    assert files == [str(tmp_path / 'out' / name) for name in ('a/1.png', 'b/1.png')]
