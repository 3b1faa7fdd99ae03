"""Files of exported models in ONNX Runtime, compared with the models in PyTorch."""

import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from exported import CONFIGS, CROPPED, load
from torch import nn

from mmgcvit.deployment import (
    OnnxModel,
    build_graph,
    compare,
    export,
    export_onnx,
    open_images,
    segmentors,
)
from mmgcvit.deployment.parity import Parity, agreement
from mmgcvit.errors import UserError

PAGE = Path(__file__).parents[2] / 'docs/export.md'


def inputs_and_outputs(model):
    nodes = [*model.session.get_inputs(), *model.session.get_outputs()]
    return {node.name: (node.type, node.shape) for node in nodes}


@pytest.mark.parametrize('name', ['retinanet', pytest.param('mask_rcnn', marks=pytest.mark.slow)])
def test_detector_in_onnx_runtime(models, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    trained = load(tmp_path, name)
    lines = []
    path = export_onnx(trained, tmp_path / 'new' / 'a.onnx', say=lines.append)
    assert 'image of 90×75' in lines[-2] and 'image of 51×130' in lines[-1]
    model = OnnxModel(path)
    assert model.classes == ['circle', 'rectangle', 'triangle'] and model.resizes
    expected = {
        'image': ('tensor(uint8)', ['height', 'width', 3]),
        'boxes': ('tensor(float)', ['detections', 4]),
        'scores': ('tensor(float)', ['detections']),
        'labels': ('tensor(int64)', ['detections']),
        'masks': ('tensor(float)', ['detections', 28, 28]),
    }
    assert inputs_and_outputs(model) == {k: expected[k] for k in ('image', *model.outputs)}
    # Images of blocks of 2x2 pixels. Resized to half their size, they are the same in OpenCV and
    # ONNX Runtime; random networks are too sensitive to differences in rounding.
    for number, size in enumerate([(96, 128, 3), (96, 110, 3), (70, 128, 3)]):
        small = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        cv2.imwrite(str(tmp_path / f'{number}.png'), small.repeat(2, 0).repeat(2, 1))
    parity = compare(trained, model, open_images(trained, tmp_path))
    assert len(parity.seconds) == 3 and len(parity.boxes) > 20 and not parity.unpaired
    assert max(parity.boxes) < 0.01 and max(parity.scores) < 1e-3
    assert len(parity.masks) == ('masks' in model.outputs) * len(parity.boxes)
    assert min(parity.masks, default=1) > 0.99
    if 'masks' in model.outputs:
        capsys.readouterr()
        run_the_program_of_the_page(path, tmp_path / '0.png')
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) > 5 and all(line.split()[0] in model.classes for line in printed)


def run_the_program_of_the_page(path, image):
    (program,) = re.findall('```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    path.rename('model.onnx')
    shutil.copy(image, 'image.jpg')
    exec(program, {})


def test_segmentor_with_the_tool(models, tmp_path, load_tool, capsys):
    load(tmp_path, 'upernet')
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'old')
    load_tool('export_onnx').main(
        [str(CONFIGS['upernet']), str(tmp_path / 'weights.pth'), '--out', str(path)]
    )
    printed = capsys.readouterr().out.splitlines()
    assert f'{path} exists and will be replaced' in printed and f'wrote {path}' in printed
    model = OnnxModel(path)
    assert inputs_and_outputs(model) == {
        'image': ('tensor(uint8)', ['height', 'width', 3]),
        'label_map': ('tensor(uint8)', ['height', 'width']),
    }
    assert f'2 images, one per run, on the CPU; threads: {torch.get_num_threads()}' in printed
    rows = {line[:30].strip(): line[30:].split() for line in printed}
    assert float(rows['pixels with the same class'][-1]) > 0.98
    first, second = map(float, rows['mIoU'])
    assert 0 <= first < 100 and abs(first - second) < 0.5
    assert len(rows['median latency (ms)']) == 2


@pytest.mark.slow
def test_classifier_in_onnx_runtime(models, tmp_path):
    trained = load(tmp_path, 'classifier', **{'test_dataloader.dataset.pipeline': CROPPED})
    model = OnnxModel(export_onnx(trained, tmp_path / 'a.onnx'))
    assert inputs_and_outputs(model)['scores'] == ('tensor(float)', [2])
    parity = compare(trained, model, open_images(trained, models.images[0].parent))
    assert parity.classes == [1, 1] and max(parity.scores) < 1e-3
    assert any(line.startswith('images with the same class') for line in parity.lines())


@pytest.mark.slow
def test_no_detections_pasted_masks_and_weights_in_a_second_file(models, tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'LARGEST', 0)
    options = {'model.test_cfg.rcnn.score_thr': 1.1, 'model.test_cfg.rcnn.nms.type': 'nms'}
    trained = load(tmp_path, 'mask_rcnn', **options)
    path = export_onnx(trained, tmp_path / 'a.onnx', paste_masks=True, resize=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        'a.onnx',
        'a.onnx.data',
        'weights.pth',
    ]
    assert path.stat().st_size < 1e6 < path.with_name('a.onnx.data').stat().st_size
    onnx.checker.check_model(str(path))
    model = OnnxModel(path)
    assert not model.resizes
    found = model(np.zeros((70, 90, 3), np.uint8))
    assert {name: value.shape for name, value in found.items()} == {
        'boxes': (0, 4),
        'scores': (0,),
        'labels': (0,),
        'masks': (0, 70, 90),
    }
    report = compare(trained, model, open_images(trained))
    assert report.metrics == {} and report.boxes == [] and list(report.lines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        # an operator that ONNX does not have for any size, as in other heads
        (lambda patch: patch.setattr(segmentors, 'AnySizePool', nn.AdaptiveAvgPool2d), 'exported'),
        pytest.param(
            lambda patch: patch.setattr(export, 'AGREE', 1.1),
            'agree to .* No file was written',
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            lambda patch: patch.setattr(export, 'OTHERS', ((0, 0),)),
            'does not run on an image of 0×0',
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_failed_export_leaves_the_old_file(models, tmp_path, monkeypatch, change, message):
    trained = load(tmp_path, 'upernet')
    change(monkeypatch)
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'old')
    with pytest.raises(UserError, match=message):
        export_onnx(trained, path)
    assert path.read_bytes() == b'old'
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.onnx', 'weights.pth']


def test_arguments(models, tmp_path, monkeypatch):
    trained = load(tmp_path, 'retinanet')
    with pytest.raises(UserError, match=r'name of an .onnx file'):
        export_onnx(trained, tmp_path / 'a.pt')
    with pytest.raises(UserError, match='--paste-masks is for detectors with masks'):
        export_onnx(trained, tmp_path / 'a.onnx', paste_masks=True)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='has no images'):
        open_images(trained, tmp_path / 'empty')
    trained.cfg.test_dataloader.dataset.ann_file = 'none.json'
    with pytest.raises(UserError, match=r'the test set of .* or skip the report'):
        open_images(trained)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed.*'mmgcvit\[export\]'"):
        export_onnx(trained, tmp_path / 'a.onnx')
    assert sorted(file.name for file in tmp_path.iterdir()) == ['empty', 'weights.pth']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--num-images', '0'], '--num-images 0 is not allowed: use at least 1'),
        (['--out', 'model.pt'], 'model.pt is not the name of an .onnx file'),
        (['--out', 'folder.onnx'], 'folder.onnx is a folder: pass the name of a file'),
        (['--out', 'file/new/a.onnx'], 'file is a file: pass another name'),
        (['--out', 'locked/new/a.onnx'], 'locked is not writable for this user: pass a file in'),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    tmp_path, monkeypatch, load_tool, options, message
):
    monkeypatch.chdir(tmp_path)
    Path('folder.onnx').mkdir()
    Path('file').write_text('')
    Path('locked').mkdir()
    # root may write everywhere
    monkeypatch.setattr('os.access', lambda path, mode: Path(path).name != 'locked')
    with pytest.raises(UserError, match=message):
        load_tool('export_onnx').main(['none.py', 'none.pth', *options])
    assert sorted(path.name for path in Path().rglob('*')) == ['file', 'folder.onnx', 'locked']


def test_the_model_is_checked_before_its_pipeline_and_its_data(models, tmp_path, load_tool):
    load(tmp_path, 'mask_rcnn', **{'model.roi_head.type': 'PISARoIHead'})
    options = [
        'model.backbone.arch.depths=(1,1,1,1)',
        'model.roi_head.type=PISARoIHead',
        'test_dataloader.dataset.pipeline.1.backend=pillow',
        'test_dataloader.dataset.ann_file=none.json',
    ]
    arguments = [str(CONFIGS['mask_rcnn']), str(tmp_path / 'weights.pth')]
    with pytest.raises(UserError, match='roi_head is PISARoIHead, which cannot be exported'):
        load_tool('export_onnx').main([*arguments, '--cfg-options', *options])


class GraphAsOnnx:
    """The graph of a model, called as its file in ONNX Runtime."""

    resizes, mask_thr = True, 0.5

    def __init__(self, trained):
        self.graph = build_graph(trained)

    def __call__(self, image):
        with torch.no_grad():
            return {'scores': self.graph(torch.from_numpy(image.copy())).numpy()}


@pytest.mark.parametrize('of_test_set', [True, False])
def test_images_that_cannot_be_loaded_are_skipped(models, tmp_path, of_test_set):
    for number, name in enumerate(['a/1.jpg', 'a/2.jpg', 'b/3.jpg', 'b/4.jpg']):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(models.images[number % 2], path)
    for name in ('a/1.jpg', 'b/3.jpg'):
        (tmp_path / 'images' / name).write_bytes(b'damaged')
    data = {'data_root': str(tmp_path), 'data_prefix': 'images'}
    options = {f'test_dataloader.dataset.{key}': value for key, value in data.items()}
    trained = load(tmp_path, 'classifier', **options)
    images = open_images(trained, None if of_test_set else tmp_path / 'images')
    lines = []
    parity = compare(trained, GraphAsOnnx(trained), images, say=lines.append)
    assert [re.search(r'skipped: \S*/images/(\S+):', line)[1] for line in lines] == [
        'a/1.jpg',
        'b/3.jpg',
    ]
    assert parity.skipped == 2 and len(parity.seconds) == 2 and parity.classes == [1, 1]
    assert '2 of 4 images were skipped, because they could not be loaded' in parity.lines()
    assert bool(parity.metrics) == of_test_set
    for name in ('a/2.jpg', 'b/4.jpg'):
        (tmp_path / 'images' / name).write_bytes(b'damaged')
    with pytest.raises(UserError, match=r'none of the 4 images could be loaded: .*a/1.jpg'):
        compare(trained, GraphAsOnnx(trained), images, say=lines.append)


def test_skipped_images_are_an_error_of_the_tool(models, tmp_path, load_tool, monkeypatch, capsys):
    load(tmp_path, 'classifier')
    tool = load_tool('export_onnx')
    monkeypatch.setattr(tool, 'export_onnx', lambda *_: None)
    monkeypatch.setattr(tool, 'OnnxModel', lambda _: None)
    report = Parity(seconds=[(1, 2)], skipped=3)
    monkeypatch.setattr(tool, 'compare', lambda *_: report)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'^images that were skipped.* 3. Replace.* complete'):
        tool.main([str(CONFIGS['classifier']), str(tmp_path / 'weights.pth')])
    assert 'median latency (ms)' in capsys.readouterr().out


def test_agreement_of_the_predictions():
    labels = np.array([[1, 2], [3, 3]])
    assert agreement(dict(label_map=labels), dict(label_map=np.minimum(labels, 2))) == 0.5
    scores = np.array([0.5, 0.2, 0.3], np.float32)
    assert agreement(dict(scores=scores), dict(scores=scores[::-1])) == pytest.approx(0.8)

    def outputs(boxes, scores, labels, masks):
        masks = np.array(masks, np.float32)[:, None, None].repeat(2, 1)
        boxes, scores = (np.array(each, np.float32) for each in (boxes, scores))
        return dict(boxes=boxes, scores=scores, labels=np.array(labels), masks=masks)

    boxes = [[0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 60, 60]]
    first = outputs(boxes, [0.9, 0.8, 0.3], [0, 1, 0], [0.5, 0.5, 0.5])
    assert agreement(first, first) == pytest.approx(1)
    # another score, another mask, and another class
    second = outputs(boxes, [0.7, 0.8, 0.3], [0, 1, 1], [0.5, 0.75, 0.5])
    assert agreement(first, second) == pytest.approx((0.7 + 0.75 * 0.8) / (0.9 + 0.8 + 0.6))
    nothing = {name: value[:0] for name, value in first.items()}
    assert agreement(nothing, nothing) == 1 and agreement(first, nothing) == 0


def test_detections_are_compared_in_pairs():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    def sample(boxes, scores, labels):
        return DetDataSample(
            pred_instances=InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32),
                scores=torch.tensor(scores),
                labels=torch.tensor(labels),
            )
        )

    first = sample([[0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 60, 60]], [0.9, 0.8, 0.2], [0, 1, 0])
    second = sample([[20, 20, 40, 41], [0, 0, 9, 9], [50, 50, 61, 60]], [0.7, 0.6, 0.1], [1, 1, 0])
    parity = Parity()
    parity.add(first, second)
    assert parity.boxes == [1.0] and parity.scores == pytest.approx([0.1])
    assert sorted(parity.unpaired) == pytest.approx([0.6, 0.9])
