"""Timing a model: what is measured, in which precision, and what goes wrong."""

import json
from pathlib import Path

import forks
import mmdet
import mmpretrain
import pytest
import torch
from mmengine.config import ConfigDict

from mmgcvit.analysis.samples import BOXES, random_batch
from mmgcvit.analysis.speed import (
    INFERENCE,
    TRAINING,
    Settings,
    build_model,
    measure,
    peak_process_memory,
)
from mmgcvit.engine import load_config
from mmgcvit.errors import UserError
from mmgcvit.task import CLASSIFICATION, DETECTION, SEGMENTATION

ROOT = Path(__file__).parents[2]
MASK_RCNN = str(ROOT / 'configs/detection/mask_rcnn_gcvit_shapes.py')
UPERNET = str(ROOT / 'configs/segmentation/upernet_gcvit-xxt_160k_ade20k-512x512.py')


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def upernet(nano, tmp_path):
    """Settings of a very small UPerNet."""
    path = tmp_path / 'upernet.py'
    path.write_text(
        f'_base_ = {UPERNET!r}\n'
        f'arch = dict(_delete_=True, **{nano!r})\n'
        'model = dict(\n'
        '    backbone=dict(arch=arch, window_size=4),\n'
        '    decode_head=dict(in_channels=[8, 16, 32, 64], channels=16, num_classes=5),\n'
        '    auxiliary_head=dict(in_channels=32, channels=8, num_classes=5))\n'
    )
    return dict(config=str(path), shape=(64, 96), warm_up=1, runs=3)


@pytest.mark.parametrize('num_classes', [1, 3])
def test_random_ground_truth_of_a_detector_is_valid(num_classes):
    head = dict(num_classes=num_classes)
    model = ConfigDict(roi_head=dict(bbox_head=[head, head], mask_head=head))
    batch = random_batch(model, DETECTION, 2, (96, 128))
    labels = set()
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        assert image.shape == (3, 96, 128) and image.dtype == torch.uint8
        found = sample.gt_instances
        assert found.bboxes.shape == (BOXES, 4) and found.masks.masks.shape == (BOXES, 96, 128)
        assert (found.bboxes >= 0).all() and (found.bboxes[:, 2:] > found.bboxes[:, :2]).all()
        assert (found.bboxes[:, 2:] <= torch.tensor([128, 96])).all()
        labels |= set(found.labels.tolist())
    assert labels == set(range(num_classes))


def test_random_ground_truth_of_a_segmentor_is_valid():
    model = ConfigDict(decode_head=dict(num_classes=5))
    batch = random_batch(model, SEGMENTATION, 2, (32, 48))
    for sample in batch['data_samples']:
        assert sample.gt_sem_seg.data.shape == (1, 32, 48)
        assert set(sample.gt_sem_seg.data.unique().tolist()) == set(range(5))
    assert not torch.equal(*batch['inputs'])


@pytest.mark.parametrize('phase', [INFERENCE, TRAINING])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_both_phases_of_a_segmentor(upernet, phase, dtype):
    found = measure(Settings(**upernet, dtype=dtype), phase)
    assert found.phase == phase and found.shape == (64, 96)
    assert found.device == 'CPU, 1 threads'
    latency = found.latency_ms
    assert 0 < latency[50] <= latency[90] <= latency[99]
    # two images a step: the mean of three runs is between a third of their sum and the slowest
    assert latency[99] / 3 < 2e3 / found.images_per_second <= latency[99] * 1.02
    assert found.peak_memory >= found.memory_before > 1e8


def test_steps_that_warm_up_are_not_counted(upernet, monkeypatch):
    from mmgcvit.analysis import speed

    ticks = iter([0.0, 10.0, 12.0, 20.0, 23.0, 30.0, 39.0])
    monkeypatch.setattr(speed.time, 'perf_counter', lambda: next(ticks))
    seconds = speed._time(lambda data: None, {}, Settings(**upernet), 'cpu')
    # the first of four only warmed up
    assert seconds == [2.0, 3.0, 9.0]


def test_a_training_step_changes_the_weights_and_the_batch_is_not_touched(upernet):
    from mmgcvit.analysis import speed

    settings = Settings(**upernet)
    # as in the configs that train in shards, of which one process is timed
    options = dict(type='AmpOptimWrapper', loss_scale='dynamic', use_fsdp=True)
    cfg = load_config(
        settings.config, options={f'optim_wrapper.{k}': v for k, v in options.items()}
    )
    model = build_model(cfg, settings)
    before = model.backbone.stem.conv.weight.detach().clone()
    batch = random_batch(cfg.model, SEGMENTATION, 2, (64, 96))
    step = speed._training_step(model, cfg, settings)
    speed._time(step, batch, settings, 'cpu')
    assert model.training and not torch.equal(model.backbone.stem.conv.weight, before)
    assert set(batch['data_samples'][0].keys()) == {'gt_sem_seg'}


def test_bfloat16_leaves_a_detectors_heads_in_float32():
    settings = Settings(MASK_RCNN, dtype='bfloat16')
    model = build_model(load_config(MASK_RCNN), settings).eval()
    inner = []
    model.backbone.stages[0].blocks[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: inner.append(output.dtype)
    )
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 96))
    assert inner == [torch.bfloat16]
    assert all(m.dtype == torch.float32 for m in maps)


def test_weights_are_those_of_the_checkpoint(upernet, tmp_path):
    settings = Settings(**upernet)
    first = build_model(load_config(settings.config), settings)
    torch.save({'state_dict': first.state_dict()}, tmp_path / 'a.pth')
    again = Settings(**upernet, checkpoint=str(tmp_path / 'a.pth'))
    second = build_model(load_config(again.config), again)
    assert torch.equal(first.backbone.stem.conv.weight, second.backbone.stem.conv.weight)
    other = Settings(MASK_RCNN, checkpoint=str(tmp_path / 'a.pth'))
    with pytest.raises(UserError, match=r'a\.pth contains the backbone but not the rest'):
        build_model(load_config(MASK_RCNN), other)


def test_what_cannot_be_measured_is_an_error(upernet, load_tool):
    with pytest.raises(UserError, match='--batch-size 1 cannot be trained'):
        measure(Settings(**upernet, batch_size=1), TRAINING)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='float16 needs a GPU'):
            measure(Settings(**upernet, dtype='float16'), INFERENCE)
    for option, value in (('--runs', '0'), ('--batch-size', '0'), ('--warm-up', '-1')):
        with pytest.raises(UserError, match=rf'{option} {value} is not allowed'):
            load_tool('benchmark').parse([UPERNET, option, value])


def test_peak_memory_grows_by_what_is_allocated():
    before = peak_process_memory()
    held = torch.ones(before // 4)
    assert peak_process_memory() > before or held is None


def test_tool_measures_both_phases_in_processes_of_their_own(
    load_tool, monkeypatch, capsys, tmp_path
):
    """The documented command on the quickstart's detector."""
    tool = load_tool('benchmark')
    started = []

    def get_context(method):
        started.append(method)
        # starts processes as 'spawn' does, of a Python that has imported what takes seconds
        return forks.start_server()

    monkeypatch.setattr(tool, 'get_context', get_context)
    arguments = ['--shape', '96', '128', '--runs', '2', '--warm-up', '1']
    tool.main([MASK_RCNN, *arguments, '--json', str(tmp_path / 'speed.json')])
    operators, *printed = capsys.readouterr().out.splitlines()
    assert operators.startswith("mmcv's operators: ")
    assert printed[0].startswith('2 images of 96×128 per step; float32; 2 steps (warm-up: 1)')
    written = json.loads((tmp_path / 'speed.json').read_text())
    for line, phase in zip(printed[2:4], written['phases'], strict=True):
        values = [phase['images_per_second'], *phase['latency_ms'].values()]
        shown = line.removeprefix(phase['phase']).split()
        assert shown[0] == f'{values[0]:.2f}'
        assert shown[1:4] == [f'{value:.1f}' for value in values[1:]]
    assert [phase['phase'] for phase in written['phases']] == [INFERENCE, TRAINING]
    assert started == ['spawn', 'spawn']
    assert 'before the model was built' in printed[4] or 'on the GPU' in printed[4]


def test_random_ground_truth_of_a_classifier_is_valid():
    model = ConfigDict(backbone=dict(in_channels=4), head=dict(num_classes=3))
    batch = random_batch(model, CLASSIFICATION, 8, (32, 48))
    assert {int(sample.gt_label) for sample in batch['data_samples']} == {0, 1, 2}
    assert all(image.shape == (4, 32, 48) for image in batch['inputs'])


@pytest.mark.parametrize(
    ('model', 'channels'),
    [
        (dict(backbone=dict(type='ResNet')), 3),
        (dict(backbone=dict(in_channels=1), data_preprocessor=dict(mean=[0] * 3)), 1),
        (dict(backbone=dict(type='LoRAModel', module=dict(in_channels=5))), 5),
        (dict(backbone=dict(type='Other'), data_preprocessor=dict(mean=[0] * 4)), 4),
        (dict(backbone=dict(type='Other'), data_preprocessor=dict(mean=[0])), 3),
        (dict(type='Other', data_preprocessor=None), 3),
    ],
)
def test_random_images_have_the_channels_of_the_model(model, channels):
    model = ConfigDict(head=dict(num_classes=2), **model)
    batch = random_batch(model, CLASSIFICATION, 1, (4, 6))
    assert batch['inputs'][0].shape == (channels, 4, 6)


def test_random_ground_truth_of_panoptic_models_has_things_and_stuff():
    model = ConfigDict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=2, mask=1))
    for sample in random_batch(model, DETECTION, 2, (32, 48))['data_samples']:
        assert set(sample.gt_instances.labels.tolist()) == {0, 1, 2}
        assert set(sample.gt_sem_seg.sem_seg.unique().tolist()) == {3, 4}
        assert sample.gt_sem_seg.sem_seg.shape == (1, 32, 48) and len(sample.gt_instances.masks)


def test_detectors_without_masks_get_none():
    model = ConfigDict(bbox_head=dict(num_classes=3))
    for sample in random_batch(model, DETECTION, 1, (32, 48))['data_samples']:
        assert 'masks' not in sample.gt_instances and 'gt_sem_seg' not in sample


def settings_of(library, name, **more):
    config = Path(library.__file__).parent / '.mim' / 'configs' / name
    more = dict(shape=(96, 128), warm_up=0, runs=1) | more
    return Settings(str(config), **more)


KINDS = [
    (mmpretrain, 'resnet/resnet18_8xb32_in1k.py'),
    (mmpretrain, 'swin_transformer/swin-tiny_16xb64_in1k.py'),
    (mmdet, 'retinanet/retinanet_r18_fpn_1x_coco.py'),
    (mmdet, 'detr/detr_r18_8xb2-500e_coco.py'),
    (mmdet, 'solo/solo_r50_fpn_1x_coco.py'),
    (mmdet, 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'),
    (mmdet, 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
]
# a training step takes as long as those of all others together
LARGE = KINDS[-2:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('library', 'name', 'phase'),
    [
        *((*kind, INFERENCE) for kind in KINDS),
        *((*kind, TRAINING) for kind in KINDS if kind not in LARGE),
        *(pytest.param(*kind, TRAINING, marks=pytest.mark.nightly) for kind in LARGE),
    ],
)
def test_models_of_every_kind_are_measured(library, name, phase):
    shape = (224, 224) if library is mmpretrain else (96, 128)
    found = measure(settings_of(library, name, shape=shape), phase)
    assert found.images_per_second > 0


def test_models_that_need_more_than_images_are_one_line(tmp_path):
    """A tracker, which takes videos, and a config that is not for training."""
    (tmp_path / 'config.py').write_text(
        "_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'\noptim_wrapper = None\n"
    )
    for settings, phase, reason in (
        (settings_of(mmdet, 'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py'), INFERENCE, '4 dims'),
        (Settings(str(tmp_path / 'config.py'), shape=(32, 32)), TRAINING, 'has no optim_wrapper'),
    ):
        with pytest.raises(UserError, match=reason) as error:
            measure(settings, phase)
        assert '\n' not in str(error.value)


def test_types_that_are_classes_are_measured(tmp_path):
    (tmp_path / 'config.py').write_text(
        'from mmpretrain.models import ClsDataPreprocessor, CrossEntropyLoss\n'
        'from mmpretrain.models import GlobalAveragePooling, ImageClassifier\n'
        'from mmpretrain.models import LinearClsHead, ResNet\n'
        'from mmengine.optim import OptimWrapper\n'
        'from torch.optim import SGD\n'
        'default_scope = None\n'
        'model = dict(\n'
        '    type=ImageClassifier,\n'
        '    data_preprocessor=dict(type=ClsDataPreprocessor),\n'
        '    neck=dict(type=GlobalAveragePooling),\n'
        '    backbone=dict(type=ResNet, depth=18, num_stages=4),\n'
        '    head=dict(type=LinearClsHead, num_classes=2, in_channels=512,\n'
        '              loss=dict(type=CrossEntropyLoss)))\n'
        'optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))\n'
    )
    settings = Settings(str(tmp_path / 'config.py'), shape=(64, 64), warm_up=0, runs=1)
    for phase in (INFERENCE, TRAINING):
        assert measure(settings, phase).images_per_second > 0
