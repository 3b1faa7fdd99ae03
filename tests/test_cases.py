"""Situations from public bug reports give the right outcome with the commands of a user.

tests/data/cases/make.py writes their data and configs.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import cv2
import forks
import numpy as np
import pytest
from data.cases import make

TOOLS = forks.ROOT / 'tools'
SPLITS = ('train', 'val', 'test')


@pytest.fixture
def folder(request, tmp_path):
    """A folder with the data and configs of the case that the parameter names."""
    make.make(request.param, tmp_path / request.param)
    return tmp_path / request.param


def case(*names):
    return pytest.mark.parametrize('folder', names, indirect=True)


def normalizes_any_number_of_channels():
    """Whether mmseg's data preprocessor does; that of the onedl fork accepts 1 or 3."""
    return importlib.metadata.packages_distributions()['mmseg'] == ['mmsegmentation']


six_bands = pytest.mark.skipif(
    not normalizes_any_number_of_channels(),
    reason='the data preprocessor of the onedl fork normalizes 1 or 3 channels',
)


def tool(folder, name, *arguments, code=0):
    """Run a tool in the folder of a case, and return what it printed."""
    out = folder / 'printed.txt'
    found, printed = forks.run(TOOLS / f'{name}.py', *arguments, out=out, cwd=folder)
    assert found == code, printed[-4000:]
    if code:
        assert 'Traceback' not in printed, printed[-4000:]
    return printed


def command(folder, *arguments):
    """Run a command that starts several processes in the folder of a case."""
    environment = os.environ | forks.ENVIRONMENT
    environment |= {'MMGCVIT_VENV': sys.prefix, 'PORT': forks.free_port()}
    done = subprocess.run(
        list(map(str, arguments)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def named_before_training(folder, config, *words):
    """Check that both the data check and the training report a fault, before the first step."""
    for name in ('check_data', 'train'):
        printed = tool(folder, name, config, code=1)
        assert [word for word in words if word.lower() not in printed.lower()] == [], printed
        assert not re.search(r'(Epoch|Iter)\(train\)', printed)
    assert not list(folder.rglob('*.pth'))


def last_epochs(work_dir):
    return sorted(int(path.stem.rpartition('_')[2]) for path in work_dir.glob('epoch_*.pth'))


def learning_rates(work_dir):
    """Return the learning rate of each iteration in the logs of a training."""
    texts = (path.read_text() for path in sorted(work_dir.glob('*/*.log')))
    return [float(rate) for text in texts for rate in re.findall(r'\(train\).* lr: (\S+)', text)]


def warnings(printed):
    return [line for line in printed.splitlines() if ' - WARNING - ' in line]


@case('space-in-path')
def test_a_path_with_a_space_is_found(folder):
    option = 'train_dataloader.dataset.data_root=data/my shapes/coco/'
    assert 'no problems found' in tool(folder, 'check_data', 'det.py', '--cfg-options', option)


@six_bands
@case('six-bands')
def test_images_of_six_bands_are_checked_and_counted(folder):
    assert 'no problems found' in tool(folder, 'check_data', 'bands.py')
    assert 'parameters' in tool(folder, 'get_flops', 'bands.py')


@six_bands
@pytest.mark.slow
@case('six-bands')
def test_images_of_six_bands_are_trained_timed_and_drawn(folder):
    hook = [f'default_hooks.visualization.{setting}' for setting in ('draw=True', 'interval=1')]
    tool(folder, 'train', 'bands.py', '--cfg-options', *hook)
    drawn = list((folder / 'work_dirs/bands').glob('*/vis_data/vis_image/val_*.png'))
    assert all(cv2.imread(str(path))[70:90, :90].std() > 8 for path in drawn) and len(drawn) == 4
    arguments = ('bands.py', '--shape', 96, 96, '--runs', 1, '--warm-up', 0)
    assert 'training step' in tool(folder, 'benchmark', *arguments)
    checkpoint = 'work_dirs/bands/iter_4.pth'
    assert 'mIoU' in tool(folder, 'test', 'bands.py', checkpoint, '--show-dir', 'pictures')
    pictures = sorted((folder / 'pictures').iterdir())
    assert [path.name for path in pictures] == [f'{index}.tif' for index in range(4)]
    for path in pictures:
        picture = cv2.imread(str(path))
        assert picture.shape == (96, 192, 3)
        # the noise of the bands, below the labels
        assert picture[70:90, :90].std() > 8


@pytest.mark.slow
@case('orientation-ignored')
def test_boxes_are_in_place_where_orientation_tags_are_ignored(folder):
    options = [
        f'{s}_dataloader.dataset.pipeline.0.color_type=color_ignore_orientation' for s in SPLITS
    ]
    tool(folder, 'train', 'det.py', '--cfg-options', *options)
    arguments = ('det.py', 'work_dirs/det/epoch_1.pth', '--show-dir', 'pictures')
    tool(folder, 'test', *arguments, '--cfg-options', *options)
    content = json.loads(make.annotations(folder, 'val').read_text())
    name = content['images'][0]['file_name']
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imread(str(folder / 'data/shapes/coco/val2017' / name), flags)
    height, width = image.shape[:2]
    picture = cv2.imread(str(folder / 'pictures' / name), flags)
    assert picture.shape == (height, 2 * width, 3)
    changed = np.abs(picture[:, :width].astype(int) - image).max(2) > 60
    for instance in content['annotations']:
        if instance['image_id'] == content['images'][0]['id']:
            x, y, w, h = map(round, instance['bbox'])
            row = changed[max(y - 3, 0) : y + 4, x : x + w]
            column = changed[y : y + h, max(x - 3, 0) : x + 4]
            assert row.any(0).mean() > 0.9 and column.any(1).mean() > 0.9


@case('val-mask-empty', 'val-mask-of-four-numbers')
def test_a_mask_in_the_validation_that_cannot_be_used_is_named(folder):
    first = json.loads(make.annotations(folder, 'val').read_text())['annotations'][0]
    named_before_training(folder, 'det.py', 'val', 'instances_val2017.json', f'id {first["id"]}')


@case('all-crowds')
def test_only_crowds_are_named(folder):
    named_before_training(folder, 'det.py', 'iscrowd', 'instances_train2017.json')


@case('boxes-alone')
def test_boxes_without_masks_have_one_remedy_that_works(folder):
    named_before_training(folder, 'det.py', 'mask_head', 'with_mask', 'metric')
    (folder / 'boxes.py').write_text("""_base_ = ['./det.py']
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(with_mask=False)
test_pipeline = _base_.test_pipeline
test_pipeline[2].update(with_mask=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))
val_evaluator = test_evaluator = dict(metric='bbox')
""")
    assert 'no problems found' in tool(folder, 'check_data', 'boxes.py')
    assert 'coco/bbox_mAP' in tool(folder, 'train', 'boxes.py')


@case('flat-polygon')
def test_the_instance_with_a_flat_polygon_is_named(folder):
    first = json.loads(make.annotations(folder, 'train').read_text())['annotations'][0]
    named_before_training(folder, 'det.py', 'instances_train2017.json', f'id {first["id"]}')


@case('byte-order-mark')
def test_the_file_with_a_byte_order_mark_is_named(folder):
    named_before_training(folder, 'det.py', 'instances_train2017.json', 'UTF-8')


@case('metric-of-another-name')
def test_a_metric_that_save_best_does_not_find_is_named_before_the_training(folder):
    option = 'val_evaluator.iou_metrics=[mDice]'
    for resume in ([], ['--resume']):
        printed = tool(folder, 'train', 'seg.py', *resume, '--cfg-options', option, code=1)
        assert 'save_best' in printed and 'mIoU' in printed and 'mDice' in printed
        assert 'Iter(train)' not in printed and not list(folder.rglob('*.pth'))


@case('masks-of-0-and-255')
def test_a_class_without_a_pixel_is_named(folder):
    out = folder / 'printed.txt'
    _, printed = forks.run(TOOLS / 'check_data.py', 'seg.py', out=out, cwd=folder)
    problems = printed.partition('thing')[2].partition('\n')[2]  # below the table of counts
    assert 'thing' in problems and '255' in problems and 'no problems found' not in printed


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2, pytest.param(3, marks=pytest.mark.nightly)])
@case('retinanet')
def test_retinanet_trains_or_its_unused_norm_is_named(folder, processes):
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=forks.free_port())
    _, printed = forks.run(
        *(TOOLS / 'train.py', 'retinanet.py', '--launcher', 'pytorch'),
        out=folder / 'printed.txt',
        cwd=folder,
        ranks=processes,
        **dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', **address) if processes == 1 else {},
    )
    if not (folder / 'work_dirs/retinanet/epoch_1.pth').exists():
        assert all(word in printed for word in ('norm0', 'out_indices', 'start_level'))
        assert 'Traceback' not in printed and 'Epoch(train)' not in printed


@pytest.mark.slow
@case('lora')
def test_a_backbone_with_lora_trains(folder):
    tool(folder, 'train', 'lora.py')
    assert last_epochs(folder / 'work_dirs/lora') == [1]


@pytest.mark.slow
@case('early-stopping')
def test_early_stopping_keeps_its_patience_when_resumed(folder):
    tool(folder, 'train', 'stop.py', '--work-dir', 'uninterrupted')
    options = ('--cfg-options', 'train_cfg.max_epochs=2')
    tool(folder, 'train', 'stop.py', '--work-dir', 'resumed', *options)
    printed = tool(folder, 'train', 'stop.py', '--work-dir', 'resumed', '--resume')
    assert last_epochs(folder / 'uninterrupted')[-1] == 3
    if last_epochs(folder / 'resumed')[-1] != 3:
        assert any('EarlyStoppingHook' in line for line in warnings(printed))


@pytest.mark.slow
@case('longer-schedule')
def test_a_longer_schedule_counts_or_a_line_says_which_does(folder):
    tool(folder, 'train', 'long.py', '--work-dir', 'uninterrupted')
    tool(folder, 'train', 'short.py', '--work-dir', 'resumed')
    printed = tool(folder, 'train', 'long.py', '--work-dir', 'resumed', '--resume')
    expected, rates = (learning_rates(folder / name) for name in ('uninterrupted', 'resumed'))
    assert len(rates) == len(expected) == 6
    if rates[3:] != expected[3:]:
        assert any('schedule' in line for line in warnings(printed))


@pytest.mark.slow
@case('short-palette')
def test_colors_are_made_up_for_classes_without_one(folder):
    tool(folder, 'train', 'four.py')
    arguments = ('four.py', 'work_dirs/four/epoch_1.pth', '--show-dir', 'pictures')
    printed = tool(folder, 'test', *arguments)
    assert 'coco/segm_mAP' in printed and 'not drawn' not in printed
    assert len(list((folder / 'pictures').iterdir())) == 4


@pytest.mark.slow
@case('launcher-argument')
def test_the_older_launcher_of_torch_trains(folder):
    launcher = (sys.executable, '-m', 'torch.distributed.launch', '--nproc_per_node=2')
    port = f'--master_port={forks.free_port()}'
    arguments = (TOOLS / 'train.py', 'det.py', '--launcher', 'pytorch')
    printed = command(folder, *launcher, port, *arguments)
    assert 'coco/bbox_mAP' in printed
