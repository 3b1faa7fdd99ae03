"""Visualization hooks of the libraries draw what the pipeline loads, and end no run."""

from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer
from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.structures import DataSample
from mmpretrain.visualization import UniversalVisualizer
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from mmgcvit.engine.device import Machine
from mmgcvit.registry import HOOKS
from mmgcvit.visualization import DrawLoadedImages, adapt_drawing


class LoadArray:
    """Loads an array of any number of channels."""

    def __call__(self, results):
        return results | {'img': np.load(results['img_path'])}


class Shown:
    """Collects the images that a visualizer shows, and draws nothing."""

    def __init__(self, cls):
        self.visualizer = cls()
        self.visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[(255, 0, 0), (0, 255, 0)])
        self.images = []
        self.visualizer.add_image = lambda name, image, step=0: self.images.append(image)


@pytest.fixture
def path(tmp_path):
    image = np.random.RandomState(0).randint(0, 255, (64, 64, 6)).astype(np.uint8)
    np.save(tmp_path / 'six.npy', image)
    return str(tmp_path / 'six.npy')


def sample_of(kind, path):
    if kind is DetVisualizationHook:
        sample = DetDataSample(metainfo=dict(img_path=path))
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8, 30, 30]]),
            labels=torch.zeros(1).long(),
            scores=torch.ones(1),
        )
    elif kind is SegVisualizationHook:
        sample = SegDataSample(metainfo=dict(img_path=path))
        sample.pred_sem_seg = PixelData(data=torch.ones(1, 64, 64).long())
    else:
        sample = DataSample(metainfo=dict(img_path=path)).set_pred_score(torch.tensor([0.2, 0.8]))
    return sample


KINDS = {
    DetVisualizationHook: (DetLocalVisualizer, dict(draw=True, interval=1)),
    SegVisualizationHook: (SegLocalVisualizer, dict(draw=True, interval=1)),
    VisualizationHook: (UniversalVisualizer, dict(enable=True, interval=1)),
}


def run(kind, path, mode, transforms, wrap=True):
    """Call the hook after one batch, and return the images that it draws."""
    cls, settings = KINDS[kind]
    shown = Shown(cls)
    Visualizer.get_instance('drawing')  # which the hooks look for
    hook = kind(**settings)
    hook._visualizer = shown.visualizer
    dataset = SimpleNamespace(pipeline=Compose(transforms))
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(
        hooks=[hook],
        iter=4,
        epoch=1,
        train_loop=None,
        val_dataloader=loader,
        test_dataloader=loader,
    )
    if wrap:
        DrawLoadedImages().before_run(runner)
    batch = {'inputs': [torch.from_numpy(np.load(path)).permute(2, 0, 1)]}
    function = getattr(hook, f'after_{mode}_iter')
    function(runner, batch_idx=0, data_batch=batch, outputs=[sample_of(kind, path)])
    return shown.images


@pytest.mark.parametrize('mode', ['val', 'test'])
@pytest.mark.parametrize('kind', KINDS)
def test_images_of_six_channels_are_drawn(path, kind, mode):
    (image,) = run(kind, path, mode, [LoadArray()])
    assert image.shape[2] == 3
    assert image[40:60, :64].astype(float).std() > 20, 'the noise of the image'
    assert mmcv.imfrombytes.__module__ == 'mmcv.image.io'


@pytest.mark.parametrize('kind', [DetVisualizationHook, SegVisualizationHook])
def test_the_libraries_alone_fail(path, kind):
    with pytest.raises((cv2.error, AttributeError)):
        run(kind, path, 'val', [LoadArray()], wrap=False)


def test_an_image_that_cannot_be_drawn_is_skipped(path, log):
    def fail(results):
        raise OSError('no such band')

    assert run(DetVisualizationHook, path, 'val', [fail]) == []
    (line,) = [line for line in log if 'was not drawn' in line]
    assert line.startswith('an image of the val set was not drawn (OSError: no such band)')


@pytest.mark.parametrize('argument', ['draw', 'enable'])
def test_the_hook_is_added_where_another_one_draws(argument):
    visualization = {'type': 'VisualizationHook', argument: False}
    cfg = Config(dict(default_hooks=dict(visualization=visualization, logger=None)))
    adapt_drawing(cfg, Machine('cpu'))
    assert 'custom_hooks' not in cfg
    cfg.default_hooks.visualization[argument] = True
    cfg.custom_hooks = [dict(type='EMAHook')]
    adapt_drawing(cfg, Machine('cpu'))
    assert cfg.custom_hooks[0].type == 'EMAHook'
    assert isinstance(HOOKS.build(cfg.custom_hooks[1]), DrawLoadedImages)
