"""The tools on configs whose types are classes, and on classifiers.

Trainings and tests run in forks. Configs of classes are mmdet's pure Python style.
"""

import forks
import pytest
import torch
from launching import CONFIGS, MIXED, metrics_of_test, metrics_of_validation
from mmengine.fileio import load
from tiers import in_shards

from mmgcvit.engine import load_config

CLASSES = CONFIGS / 'classes' / 'mask_rcnn.py'
CLASSIFIER = CONFIGS / 'classifier_tiny.py'


@pytest.fixture(scope='module')
def tool(folder):
    """Run a tool of this project in forks, and return what it printed."""

    def tool(name, *arguments, ranks=1, code=0):
        out = folder / 'printed'
        found, printed = forks.run(
            f'tools/{name}.py', *arguments, out=out, ranks=ranks, SHAPES=str(folder / 'shapes')
        )
        assert found == code, printed[-4000:]
        assert 'Traceback' not in printed
        return printed

    return tool


@pytest.fixture(scope='module')
def data(folder):
    """The options of a detector's data."""
    root = folder / 'shapes' / 'coco'
    options = [f'{s}_dataloader.dataset.data_root={root}/' for s in ('train', 'val', 'test')]
    annotations = f'ann_file={root}/annotations/instances_val2017.json'
    return ['--cfg-options', *options, *(f'{s}_evaluator.{annotations}' for s in ('val', 'test'))]


@pytest.fixture(scope='module')
def of_classes(tool, data, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('of_classes')
    arguments = (CLASSES, '--work-dir', work_dir, '--launcher', 'pytorch', *data)
    return work_dir, tool('train', '--amp', '--auto-scale-lr', *arguments, ranks=2)


def test_a_config_of_classes_trains_with_the_options(of_classes):
    work_dir, printed = of_classes
    assert 'running on the CPU, 2 processes connected by gloo, SyncBN replaced by BN\n' in printed
    assert MIXED in printed
    assert 'Scaling the original LR by 0.5' in printed
    assert 'could not be checked' not in printed
    hooks = [hook.type for hook in load_config(work_dir / 'mask_rcnn.py').custom_hooks]
    assert hooks == [
        *('mmgcvit.AverageBatchNorm', 'mmgcvit.BadLossHook', 'mmgcvit.UnusedParametersHook'),
        *('mmgcvit.StopOnSigtermHook', 'mmgcvit.ResumedSettingsHook'),
        *('mmgcvit.CheckpointFitHook', 'mmgcvit.ExactResumeHook'),
    ]


def test_a_config_of_classes_is_counted_and_timed(tool):
    printed = tool('get_flops', CLASSES, '--shape', 96, 128)
    assert 'one image of 96×128, ' in printed and 'multiply-accumulates' in printed
    printed = tool('benchmark', CLASSES, '--shape', 96, 128, '--runs', 1, '--warm-up', 0)
    assert 'inference' in printed and 'training step' in printed


# mmdet looks these up in mmcv.ops by name, where a dump has paths
NAMES = [
    *(f'model.roi_head.{kind}_roi_extractor.roi_layer.type=RoIAlign' for kind in ('bbox', 'mask')),
    *(f'model.{part}.nms.type=nms' for part in ('train_cfg.rpn_proposal', 'test_cfg.rpn')),
    'model.test_cfg.rcnn.nms.type=nms',
]


@pytest.mark.slow
def test_a_config_of_classes_resumes_as_its_dump_does(of_classes, tool, data, tmp_path):
    """The dump has paths in place of the classes."""
    work_dir, _ = of_classes
    ours = torch.load(work_dir / 'epoch_2.pth', weights_only=False)['state_dict']
    nowhere = [
        'model.backbone.init_cfg.type=mmengine.model.PretrainedInit',
        'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/nothing.pth',
    ]
    for number, config in enumerate((CLASSES, work_dir / 'mask_rcnn.py')):
        again = tmp_path / str(number)
        options = ('--work-dir', again, '--resume', work_dir / 'epoch_1.pth', '--launcher')
        amp = [] if number else ['--amp', '--auto-scale-lr']
        changes = [*data, *nowhere, *(NAMES if number else [])]
        printed = tool('train', config, *options, 'pytorch', *amp, *changes, ranks=2)
        assert 'resumed epoch: 1, iter: 4' in printed
        theirs = torch.load(again / 'epoch_2.pth', weights_only=False)['state_dict']
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize('tta', [False, True])
def test_a_config_of_classes_is_tested(of_classes, tool, data, tmp_path, tta):
    arguments = (CLASSES, of_classes[0] / 'epoch_2.pth', '--work-dir', tmp_path / 'work')
    outputs = ('--out', tmp_path / 'found.pkl', '--show-dir', tmp_path / 'drawn')
    printed = tool('test', *arguments, *outputs, *(['--tta'] if tta else []), *data)
    metrics, found = metrics_of_test(tmp_path / 'work'), load(tmp_path / 'found.pkl')
    assert len(found) == len(list((tmp_path / 'drawn').iterdir())) == 4
    assert ('--tta: mmdet merges only boxes, masks are skipped' in printed) == tta
    assert all(('masks' in image['pred_instances']) != tta for image in found)
    if not tta:
        assert metrics == metrics_of_validation(of_classes[0])
    assert 'coco/AR@100' in metrics


def test_the_data_of_a_config_of_classes_are_checked(tool, data):
    wrong = (*data, 'model.roi_head.bbox_head.num_classes=7')
    printed = tool('check_data', CLASSES, *wrong, code=1)
    assert 'model.roi_head.bbox_head.num_classes is 7, but the train dataset has 3' in printed


@in_shards
@pytest.mark.slow
def test_a_config_of_classes_trains_in_shards(tool, data, tmp_path):
    sharded = tmp_path / 'sharded.py'
    sharded.write_text(
        'from mmengine._strategy import FSDPStrategy\n'
        'from mmengine.runner import FlexibleRunner\n'
        'from mmengine.config import read_base\n'
        'from mmgcvit.engine import wrap_blocks\n'
        'with read_base():\n    from .mask_rcnn import *\n'
        'runner_type = FlexibleRunner\n'
        'strategy = dict(type=FSDPStrategy, model_wrapper=dict(auto_wrap_policy=wrap_blocks))\n'
        'model.neck.norm_cfg = None\n'
    )
    for name in ('mask_rcnn', 'coco', 'no_scope'):
        (tmp_path / f'{name}.py').write_text((CLASSES.parent / f'{name}.py').read_text())
    arguments = ('--work-dir', tmp_path / 'work', '--launcher', 'pytorch', *data)
    tool('train', sharded, *arguments, ranks=2)
    assert metrics_of_validation(tmp_path / 'work')
    printed = tool('train', sharded, '--work-dir', tmp_path / 'work', *data, code=1)
    assert 'error: strategy FSDPStrategy shards a model across processes' in printed


@pytest.mark.slow
def test_a_segmentor_of_classes_trains_and_is_tested(tool, folder, tmp_path):
    root = folder / 'shapes' / 'ADEChallengeData2016'
    data = [f'{s}_dataloader.dataset.data_root={root}' for s in ('train', 'val', 'test')]
    config = CLASSES.parent / 'fcn.py'
    options = ('--cfg-options', *data)
    printed = tool('train', config, '--work-dir', tmp_path / 'work', *options)
    assert 'running on the CPU, SyncBN replaced by BN\n' in printed
    assert MIXED in printed and 'could not be checked' not in printed
    outputs = ('--work-dir', tmp_path / 'tested', '--tta', '--out', tmp_path / 'maps.pkl')
    tool('test', config, tmp_path / 'work' / 'iter_4.pth', *outputs, *options)
    assert 'mIoU' in metrics_of_test(tmp_path / 'tested')
    assert all(image['pred_sem_seg'].ndim == 2 for image in load(tmp_path / 'maps.pkl'))


@pytest.fixture(scope='module')
def classifier(tool, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('classifier')
    return work_dir, tool('train', CLASSIFIER, '--work-dir', work_dir, '--amp', '--auto-scale-lr')


def test_a_classifier_trains_in_mixed_precision(classifier):
    work_dir, printed = classifier
    assert MIXED in printed
    assert 'Scaling the original LR by 0.5' in printed
    assert metrics_of_validation(work_dir)['accuracy/top1'] > 0


@pytest.mark.parametrize('tta', [False, True])
def test_a_classifier_is_tested(classifier, tool, tmp_path, tta):
    arguments = (CLASSIFIER, classifier[0] / 'epoch_2.pth', '--work-dir', tmp_path / 'work')
    outputs = ('--out', tmp_path / 'found.pkl', '--show-dir', tmp_path / 'drawn')
    tool('test', *arguments, *outputs, *(['--tta'] if tta else []))
    metrics, found = metrics_of_test(tmp_path / 'work'), load(tmp_path / 'found.pkl')
    assert len(list((tmp_path / 'drawn').rglob('*.jpg'))) == 20
    if not tta:
        assert metrics == metrics_of_validation(classifier[0])
    assert len(found) == 20
    right = [int(image['pred_score'].argmax() == image['gt_label'].item()) for image in found]
    assert metrics['accuracy/top1'] == pytest.approx(100 * sum(right) / len(right))


def test_a_classifier_without_views_refuses_to_merge_them(classifier, tool, tmp_path):
    arguments = (CLASSIFIER, classifier[0] / 'epoch_2.pth', '--work-dir', tmp_path / 'work')
    printed = tool('test', *arguments, '--tta', '--cfg-options', 'tta_pipeline=None', code=1)
    assert printed.endswith('or test without --tta\n')
    assert 'error: --tta needs tta_pipeline in a classification config' in printed
