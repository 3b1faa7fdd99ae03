"""The rehearsal of each head of test_heads.py on drawn data, with its pipelines and metrics."""

import importlib.util
import io
import re
from functools import partial

import drawn
import pytest
from test_configs import published
from test_heads import TINY, shrink

from mmgcvit.engine import rehearse
from mmgcvit.evaluation import adapt_tta
from mmgcvit.visualization import PaintPredictions, adapt_drawing

# 5 to 10 seconds of one core each
pytestmark = pytest.mark.nightly


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return drawn.draw(tmp_path_factory.mktemp('heads') / 'drawn')


@pytest.mark.parametrize('name', TINY)
def test_every_step_of_the_rehearsal_works(name, root, tmp_path):
    if 'lvis' in name and importlib.util.find_spec('lvis') is None:
        pytest.skip('lvis is not installed')
    cfg = drawn.use(shrink(published(TINY[name])), root)
    cfg.work_dir = str(tmp_path)
    screen = io.StringIO()
    paint = partial(PaintPredictions, strict=True)
    assert rehearse(cfg, adapt_drawing, tta=adapt_tta, paint=paint, screen=screen) == 0
    printed = screen.getvalue()
    marks = ''.join(re.findall(r'^([✔!✘-]) \d ', printed, re.M))
    merges_only_boxes = name.startswith(('condinst', 'mask2former', 'panoptic-fpn'))
    assert marks == ('✔✔✔✔✔!✔' if merges_only_boxes else '✔✔✔✔✔✔✔'), printed
    assert 'every parameter has a gradient' in printed
    metrics = {'panoptic': 'coco_panoptic/PQ', 'lvis': 'lvis/bbox_AP', 'voc': 'pascal_voc/mAP'}
    assert next((metrics[key] for key in metrics if key in name), 'coco/bbox_mAP') in printed
