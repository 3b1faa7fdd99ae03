"""mmdet's and mmseg's own tools on our configs and on what is trained with them.

Their tools run as the commands of docs/openmmlab_tools.md do, each in a process of its own. These
are forked from one that has imported mmdet and mmseg already, which takes seconds.
"""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import mmdet
import mmseg
import numpy as np
import pytest
import torch
from mmengine.fileio import load
from mmengine.utils import is_installed
from pycocotools import mask as rle

from mmgcvit.datasets import draw_shapes
from mmgcvit.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'openmmlab_tools.md'
CONFIGS = ROOT / 'tests' / 'data' / 'configs'
MMDET, MMSEG = (Path(library.__file__).parent / '.mim' / 'tools' for library in (mmdet, mmseg))
MASK_RCNN = CONFIGS / 'mask_rcnn_tiny.py'
NUM_TRAIN, NUM_VAL = 32, 4
# of the detector 3 epochs of batches of 2, enough to find a shape
STEPS = {'detector': 3 * NUM_TRAIN // 2, 'segmentor': 24}
CLASSES = ('circle', 'rectangle', 'triangle')
# ADE20K's names of the background and of the three shapes; weighted, for so short a training to
# predict more than background
LABELS = ('wall', 'box', 'tent', 'ball')
SEGMENTOR_OPTIONS = [
    *(f'{s}_dataloader.dataset.metainfo.classes={",".join(LABELS)}' for s in ('train', 'val')),
    f'test_dataloader.dataset.metainfo.classes={",".join(LABELS)}',
    f'model.decode_head.num_classes={len(LABELS)}',
    f'model.auxiliary_head.num_classes={len(LABELS)}',
    'model.decode_head.loss_decode.class_weight=0.3,1,1,1',
]


def call(function, folder, shapes, printed, *arguments):
    """Call a function in this process, which is a new one, with all that it prints in a file."""
    os.chdir(folder)
    os.environ.update(SHAPES=str(shapes), MPLBACKEND='agg')
    sys.path.append(str(ROOT / 'tests' / 'data' / 'scripts'))
    torch.set_num_threads(1)
    with open(printed, 'w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            return function(*arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def run_tool(path, *arguments):
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(path.parent))  # as Python does for a script
    runpy.run_path(str(path), run_name='__main__')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('openmmlab')
    draw_shapes(folder / 'shapes', num_train=NUM_TRAIN, num_val=NUM_VAL, progress=False)
    return folder


@pytest.fixture(scope='module')
def apart(folder):
    """Call a function in a process of its own; return its result and what was printed."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmdet.apis', 'mmseg.apis', 'matplotlib.pyplot'])

    def apart(function, *arguments):
        printed = folder / 'printed.txt'
        printed.write_text('')
        with context.Pool(1) as pool:
            settings = (function, folder, folder / 'shapes', printed)
            try:
                # a process that is killed leaves no result: the timeout tells
                result = pool.apply_async(call, (*settings, *arguments)).get(timeout=240)
            except BaseException:
                print(printed.read_text()[-3000:])
                raise
        return result, printed.read_text()

    return apart


@pytest.fixture(scope='module')
def run(apart):
    """Run a tool as a command, and return what it printed."""
    return lambda path, *arguments: apart(run_tool, path, *arguments)[1]


@pytest.fixture(scope='module')
def detector(run, folder):
    """The work dir of a Mask R-CNN that mmdet's tool has trained."""
    run(MMDET / 'train.py', MASK_RCNN, '--work-dir', folder / 'detector')
    return folder / 'detector'


@pytest.fixture(scope='module')
def segmentor(run, folder):
    """The work dir of an UPerNet that mmseg's tool has trained, or ours where it cannot."""
    # onedl's distribution has another name than mmengine looks for at `mmseg::`
    tools = MMSEG if is_installed('mmsegmentation') else ROOT / 'tools'
    work_dir = ('--work-dir', folder / 'segmentor')
    config = CONFIGS / 'upernet_tiny.py'
    run(tools / 'train.py', config, *work_dir, '--cfg-options', *SEGMENTOR_OPTIONS)
    return folder / 'segmentor'


def published(run, checkpoint):
    run(ROOT / 'tools/publish_model.py', checkpoint, checkpoint.parent / 'weights.pth')
    (weights,) = checkpoint.parent.glob('weights-*.pth')
    return weights


@pytest.fixture(scope='module')
def detector_weights(run, detector):
    return published(run, detector / 'epoch_3.pth')


@pytest.fixture(scope='module')
def segmentor_weights(run, segmentor):
    return published(run, segmentor / 'iter_24.pth')


@pytest.fixture(scope='module')
def detector_test(run, detector_weights, folder):
    """What mmdet's test.py leaves of the detector."""
    run(
        MMDET / 'test.py', MASK_RCNN, detector_weights, '--work-dir', folder / 'detector_test',
        '--out', folder / 'found.pkl', '--show-dir', 'painted',
        '--cfg-options', 'test_evaluator.classwise=True',
    )  # fmt: skip
    return folder / 'detector_test'


@pytest.fixture(scope='module')
def segmentor_config(segmentor):
    """The whole config, as a training leaves it in its work dir."""
    return segmentor / 'upernet_tiny.py'


@pytest.fixture(scope='module')
def segmentor_test(run, segmentor_config, segmentor_weights, folder):
    """What mmseg's test.py leaves of the segmentor."""
    run(
        MMSEG / 'test.py', segmentor_config, segmentor_weights,
        '--work-dir', folder / 'segmentor_test', '--out', folder / 'label_maps',
        '--show-dir', folder / 'painted', '--cfg-options', 'default_hooks.visualization.interval=1',
    )  # fmt: skip
    return folder / 'segmentor_test'


def metrics_of(work_dir):
    (file,) = work_dir.glob('*/*.json')
    return without_times(json.loads(file.read_text()))


def without_times(metrics):
    return {k: v for k, v in metrics.items() if 'time' not in k and k != 'step'}


def scalars(work_dir):
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return file


def images(folder, split):
    return sorted((folder / 'shapes' / 'coco' / split).glob('*.jpg'))


def segmentation_images(folder, split):
    return sorted((folder / 'shapes' / 'ADEChallengeData2016' / 'images' / split).glob('*.jpg'))


def assert_is_picture(path, side=100):
    picture = cv2.imread(str(path))
    assert min(picture.shape[:2]) >= side and len(np.unique(picture)) > 10


@pytest.mark.parametrize('task', ['detector', 'segmentor'])
def test_their_train_lowers_the_loss_and_validates(task, request):
    lines = [json.loads(line) for line in scalars(request.getfixturevalue(task)).open()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == STEPS[task] and np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert ('coco/segm_mAP' if task == 'detector' else 'mIoU') in lines[-1]


@pytest.mark.parametrize('task', ['detector', 'segmentor'])
def test_their_test_gives_the_metrics_of_the_validation_and_of_ours(run, task, request):
    folder, work_dir = (request.getfixturevalue(name) for name in ('folder', task))
    weights = request.getfixturevalue(f'{task}_weights')
    tested = metrics_of(request.getfixturevalue(f'{task}_test'))
    found = {name: value for name, value in tested.items() if '_precision' not in name}
    validated = without_times(json.loads(scalars(work_dir).read_text().splitlines()[-1]))
    assert found == validated and max(found.values()) > 0
    config = {'detector': MASK_RCNN, 'segmentor': work_dir / 'upernet_tiny.py'}[task]
    ours = folder / f'{task}_ours'
    run(ROOT / 'tools/test.py', config, weights, '--work-dir', ours)
    assert metrics_of(ours) == found


def test_checkpoints_of_trainings_have_to_be_published(detector, detector_weights):
    """What docs/openmmlab_tools.md says of torch 2.6 and later."""
    assert torch.load(detector_weights, weights_only=True)['meta']['dataset_meta']['classes']
    with pytest.raises(Exception, match='HistoryBuffer'):
        torch.load(detector / 'epoch_3.pth', weights_only=True)


def test_precision_of_each_class(detector_test):
    found = metrics_of(detector_test)
    assert {n for n in found if '_precision' in n} == {f'coco/{name}_precision' for name in CLASSES}
    mean = np.mean([found[f'coco/{name}_precision'] for name in CLASSES])
    # mmdet writes the boxes' under the same names first; all are rounded to three digits
    assert mean == pytest.approx(found['coco/segm_mAP'], abs=1e-3)


def test_their_test_paints_images(detector_test, segmentor_test, folder):
    painted = [*detector_test.glob('*/painted/*.jpg')]
    assert {path.name for path in painted} == {path.name for path in images(folder, 'val2017')}
    maps = [*(folder / 'painted' / 'vis_data' / 'vis_image').glob('*.png')]
    assert len(maps) == NUM_VAL
    for path in (painted[0], maps[0]):
        assert_is_picture(path)


def test_coco_files_without_evaluation(run, folder, detector_weights, detector_test):
    run(
        MMDET / 'test.py', MASK_RCNN, detector_weights, '--work-dir', folder / 'coco_files',
        '--cfg-options', 'test_evaluator.format_only=True',
        f'test_evaluator.outfile_prefix={folder}/submission',
    )  # fmt: skip
    assert metrics_of(folder / 'coco_files') == {}
    boxes, masks = (load(folder / f'submission.{kind}.json') for kind in ('bbox', 'segm'))
    truth = load(folder / 'shapes' / 'coco' / 'annotations' / 'instances_val2017.json')
    sizes = {image['id']: [image['height'], image['width']] for image in truth['images']}
    categories = {category['id'] for category in truth['categories']}
    found = load(folder / 'found.pkl')
    assert (
        len(boxes) == len(masks) == sum(len(image['pred_instances']['scores']) for image in found)
    )
    assert {box['image_id'] for box in boxes} == set(sizes)
    assert {box['category_id'] for box in boxes} <= categories
    scores = [score for image in found for score in image['pred_instances']['scores'].tolist()]
    assert sorted(box['score'] for box in boxes) == pytest.approx(sorted(scores))
    for box, mask in zip(boxes, masks, strict=True):
        assert box['bbox'] == mask['bbox'] and min(box['bbox'][2:]) >= 0
        assert mask['segmentation']['size'] == sizes[mask['image_id']]
    assert max(rle.area(mask['segmentation']) for mask in masks) > 100


def test_label_maps_without_evaluation(
    run, folder, segmentor_config, segmentor_weights, segmentor_test
):
    run(
        MMSEG / 'test.py', segmentor_config, segmentor_weights, '--work-dir', folder / 'only_maps',
        '--cfg-options', 'test_evaluator.format_only=True',
        f'test_evaluator.output_dir={folder}/submission',
    )  # fmt: skip
    assert metrics_of(folder / 'only_maps') == {}
    values = set()
    for image in segmentation_images(folder, 'validation'):
        labels = cv2.imread(str(folder / 'submission' / f'{image.stem}.png'), cv2.IMREAD_UNCHANGED)
        assert labels.shape == cv2.imread(str(image)).shape[:2]
        evaluated = cv2.imread(str(folder / 'label_maps' / f'{image.stem}.png'), -1)
        assert np.array_equal(labels, evaluated)
        values |= set(np.unique(labels).tolist())
    # ADE20K's files count classes from 1
    assert values and values <= {1, 2, 3, 4}


def detect(config, weights, image):
    """Find instances through both of mmdet's interfaces."""
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    model = init_detector(str(config), str(weights), device='cpu')
    found = inference_detector(model, str(image)).pred_instances
    pixels = inference_detector(model, cv2.imread(str(image))).pred_instances
    inferencer = DetInferencer(str(config), str(weights), device='cpu')
    result = inferencer(str(image), out_dir='inferred', no_save_pred=False, pred_score_thr=0)
    found, pixels = ({k: v.numpy() for k, v in each.items()} for each in (found, pixels))
    return model.dataset_meta['classes'], found, pixels, result['predictions'][0]


def test_detectors_of_mmdets_apis(apart, folder, detector_weights):
    image = images(folder, 'val2017')[0]
    (classes, found, pixels, inferred), _ = apart(detect, MASK_RCNN, detector_weights, image)
    assert classes == CLASSES
    height, width = cv2.imread(str(image)).shape[:2]
    assert len(found['bboxes']) > 0 and found['masks'].shape[1:] == (height, width)
    assert found['masks'].any() and found['bboxes'].max() <= max(height, width)
    for name, value in found.items():
        assert np.array_equal(value, pixels[name])
    for name in ('bboxes', 'scores', 'labels'):
        np.testing.assert_allclose(inferred[name], found[name], rtol=1e-6)
    masks = np.stack([rle.decode(mask) for mask in inferred['masks']])
    assert np.array_equal(masks, found['masks'])
    assert (
        load(folder / 'inferred' / 'preds' / f'{image.stem}.json')['labels'] == inferred['labels']
    )
    assert_is_picture(folder / 'inferred' / 'vis' / image.name)


def segment(config, weights, image):
    """Find label maps through both of mmseg's interfaces."""
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    model = init_model(str(config), str(weights), device='cpu')
    found = inference_model(model, str(image)).pred_sem_seg.data.numpy()
    pixels = inference_model(model, cv2.imread(str(image))).pred_sem_seg.data.numpy()
    inferencer = MMSegInferencer(str(config), str(weights), device='cpu')
    inferred = inferencer(str(image), out_dir='labelled')['predictions']
    return model.dataset_meta['classes'], found[0], pixels[0], inferred


def test_segmentors_of_mmsegs_apis(apart, folder, segmentor_config, segmentor_weights):
    image = segmentation_images(folder, 'validation')[0]
    arguments = (segmentor_config, segmentor_weights, image)
    (classes, found, pixels, inferred), _ = apart(segment, *arguments)
    assert tuple(classes) == LABELS
    assert found.shape == cv2.imread(str(image)).shape[:2]
    assert set(np.unique(found)) <= set(range(len(LABELS)))
    assert np.array_equal(pixels, found) and np.array_equal(inferred, found)
    assert_is_picture(folder / 'labelled' / 'vis' / image.name)


def test_mmdets_browse_dataset_paints_every_image(run, folder):
    tool = MMDET / 'analysis_tools' / 'browse_dataset.py'
    run(tool, MASK_RCNN, '--not-show', '--output-dir', folder / 'browsed')
    painted = sorted((folder / 'browsed').iterdir())
    assert [path.name for path in painted] == [path.name for path in images(folder, 'train2017')]
    assert_is_picture(painted[0], side=90)


def test_mmsegs_browse_dataset_paints_every_image_as_documented(run, folder, segmentor_config):
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if 'runpy' in block]
    (folder / 'browse.py').write_text(block)
    arguments = ('--not-show', '--output-dir', folder / 'browsed_labels')
    run(folder / 'browse.py', segmentor_config, *arguments)
    painted = sorted((folder / 'browsed_labels').iterdir())
    expected = segmentation_images(folder, 'training')
    assert [path.name for path in painted] == [path.name for path in expected]
    assert_is_picture(painted[0], side=90)


@pytest.mark.parametrize('task', ['detector', 'segmentor'])
def test_analyze_logs_plots_loss_and_metric(run, task, request):
    work_dir = request.getfixturevalue(task)
    if task == 'detector':
        command = (MMDET / 'analysis_tools' / 'analyze_logs.py', 'plot_curve', scalars(work_dir))
        options = ('--keys', 'loss', 'bbox_mAP', '--eval-interval', 3)
        if not is_installed('mmsegmentation'):  # onedl's, see the page
            options += ('--style', 'dark_background')
    else:
        command = (MMSEG / 'analysis_tools' / 'analyze_logs.py', scalars(work_dir))
        options = ('--keys', 'loss', 'mIoU')
    printed = run(*command, *options, '--out', work_dir / 'curves.png')
    assert printed.count('metric is') == 2
    assert_is_picture(work_dir / 'curves.png')


def test_analyze_logs_tells_times(run, detector):
    tool = MMDET / 'analysis_tools' / 'analyze_logs.py'
    printed = run(tool, 'cal_train_time', scalars(detector))
    assert float(re.search(r'average iter time: (\S+) s/iter', printed)[1]) > 0


@pytest.mark.usefixtures('detector_test')
def test_mmdets_confusion_matrix(run, folder):
    tool = MMDET / 'analysis_tools' / 'confusion_matrix.py'
    run(tool, MASK_RCNN, folder / 'found.pkl', folder / 'matrix', '--score-thr', 0.1)
    assert_is_picture(folder / 'matrix' / 'confusion_matrix.png')


def test_mmdets_get_flops_counts_parameters(run, detector_weights):
    printed = run(MMDET / 'analysis_tools' / 'get_flops.py', MASK_RCNN, '--num-images', 1)
    weights = torch.load(detector_weights, weights_only=True)['state_dict']
    params = sum(weight.numel() for weight in weights.values())
    assert float(re.search(r'Params: (\S+)M', printed)[1]) == pytest.approx(params / 1e6, abs=1e-3)
    assert re.search(r'Flops: \S+G', printed)


def test_page_names_tools_that_exist():
    text = PAGE.read_text()
    theirs = set(re.findall(r'\$(MMDET|MMSEG)/(\S+?\.py)', text))
    ours = set(re.findall(r'(?<![/.])\b(tools/\w+\.\w+)', text))
    assert len(theirs) >= 9 and len(ours) >= 6
    for library, path in theirs:
        assert ({'MMDET': MMDET, 'MMSEG': MMSEG}[library] / path).is_file()
    for path in ours:
        assert (ROOT / path).is_file()


@pytest.mark.slow
def test_ours_resumes_what_theirs_began_and_publishes_it(run, folder, detector):
    shutil.copytree(detector, folder / 'resumed')
    printed = run(
        ROOT / 'tools/train.py', MASK_RCNN, '--work-dir', folder / 'resumed', '--resume',
        '--cfg-options', 'train_cfg.max_epochs=4', 'default_hooks.checkpoint.interval=4',
        'default_hooks.checkpoint.published_keys=[meta,state_dict]',
    )  # fmt: skip
    assert f'resumed epoch: 3, iter: {STEPS["detector"]}' in printed
    assert 'Epoch(train) [4][16/16]' in printed
    (published,) = (folder / 'resumed').glob('epoch_4-*.pth')
    whole = read_checkpoint(folder / 'resumed' / 'epoch_4.pth')
    weights = torch.load(published, weights_only=True)['state_dict']
    assert all(torch.equal(whole['state_dict'][name], weights[name]) for name in weights)
    run(MMDET / 'test.py', MASK_RCNN, published, '--work-dir', folder / 'published_test')
    assert 'coco/bbox_mAP' in metrics_of(folder / 'published_test')
