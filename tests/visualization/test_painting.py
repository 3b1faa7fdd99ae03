"""File names of the images that tools/test.py --show-dir saves; tests/tools runs the tool."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.dist import is_main_process
from mmengine.structures import BaseDataElement, InstanceData

from mmgcvit.visualization import PaintPredictions


@pytest.mark.parametrize('prefix', ['img', 'img_path'])
def test_equal_file_names_in_subfolders(tmp_path, prefix):
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


def test_every_process_saves_its_images(monkeypatch, tmp_path):
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    picture = str(tmp_path / '1.png')
    cv2.imwrite(picture, np.zeros((64, 64, 3), np.uint8))
    sample = DetDataSample(metainfo=dict(img_path=picture))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 48.0, 48.0]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
    )
    metainfo = dict(classes=('circle',), palette=[(255, 0, 0)])
    dataset = SimpleNamespace(metainfo=metainfo)
    runner = SimpleNamespace(
        visualizer=DetLocalVisualizer(), test_dataloader=SimpleNamespace(dataset=dataset)
    )
    hook = PaintPredictions(tmp_path / 'out')
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, outputs=[sample])
    blue, green, red = cv2.imread(str(tmp_path / 'out' / '1.png')).reshape(-1, 3).max(axis=0)
    assert red > 200 > max(blue, green), 'the box has the color of its class'
    assert not is_main_process(), 'and other parts of mmengine go by the rank as ever'
