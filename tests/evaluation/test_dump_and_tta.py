"""What tools/test.py makes of a config; its runs are in tests/tools/test_launching.py."""

import pytest
from mmengine.config import Config

from mmgcvit.engine import adapt_lr_scaling
from mmgcvit.engine.device import Machine
from mmgcvit.errors import UserError
from mmgcvit.evaluation import adapt_dump, adapt_tta

CPU = Machine('cpu')


def detector(**model):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    return Config(
        dict(
            model=dict(type='Detector', **model),
            test_dataloader=dict(
                dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline))
            ),
            test_evaluator=dict(type='CocoMetric', metric=['bbox', 'segm']),
        )
    )


def test_a_detector_keeps_its_boxes(log):
    cfg = detector(roi_head=dict(mask_head=dict(), mask_roi_extractor=dict(), bbox_head=dict()))
    adapt_tta(cfg, CPU)
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.module == dict(type='Detector', roi_head=dict(bbox_head=dict()))
    assert cfg.test_evaluator.metric == ['bbox']
    steps = [step['type'] for step in cfg.test_dataloader.dataset.dataset.pipeline]
    assert steps == ['LoadImageFromFile', 'TestTimeAug']
    # the ground truth that --show-dir paints is that of the first view, so this is no mirror image
    first, second = cfg.test_dataloader.dataset.dataset.pipeline[-1].transforms[0]
    assert (first.prob, second.prob) == (0, 1)
    assert log == ['--tta: mmdet merges only boxes, masks are skipped']


def test_all_parts_of_a_dataset_get_the_views():
    cfg = detector(roi_head=dict(mask_head=dict()))
    repeated = cfg.test_dataloader.dataset
    parts = [dict(pipeline=[dict(type='PackDetInputs')]), repeated]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    adapt_tta(cfg, CPU)
    first, second = cfg.test_dataloader.dataset.datasets
    assert first.pipeline == second.dataset.pipeline
    assert first.pipeline[-1].type == 'TestTimeAug'


def test_the_configs_own_views_are_used(log):
    cfg = detector(bbox_head=dict())
    cfg.test_evaluator.metric = 'bbox'
    cfg.tta_pipeline = [dict(type='Own')]
    adapt_tta(cfg, CPU)
    assert cfg.test_dataloader.dataset.dataset.pipeline == [dict(type='Own')]
    assert log == []


def test_masks_that_cannot_be_left_out_are_refused():
    with pytest.raises(UserError, match='Detector has no separate mask head'):
        adapt_tta(detector(mask_head=dict()), CPU)


def test_masks_of_a_panoptic_model_are_needed():
    cfg = detector(roi_head=dict(mask_head=dict()), panoptic_fusion_head=dict())
    cfg.test_evaluator = dict(type='mmgcvit.PanopticMetric')
    with pytest.raises(UserError, match='Detector has no separate mask head'):
        adapt_tta(cfg, CPU)


def test_a_classifier_averages_the_scores_of_its_views():
    cfg = detector(head=dict())
    with pytest.raises(UserError, match='--tta needs tta_pipeline in a classification config'):
        adapt_tta(cfg, CPU)
    cfg.tta_pipeline = [dict(type='Own')]
    adapt_tta(cfg, CPU)
    assert cfg.model.type == 'mmpretrain.AverageClsScoreTTA'
    assert cfg.test_dataloader.dataset.dataset.pipeline == [dict(type='Own')]


def test_a_segmentor_needs_views():
    cfg = Config(dict(model=dict(decode_head=dict()), tta_model=dict(type='SegTTAModel')))
    with pytest.raises(UserError, match='--tta needs tta_model and tta_pipeline'):
        adapt_tta(cfg, CPU)


@pytest.mark.parametrize(
    ('model', 'kind'),
    [
        (dict(), 'mmdet.DumpDetResults'),
        (dict(decode_head=dict()), 'mmgcvit.DumpLabelMaps'),
        (dict(head=dict()), 'DumpResults'),
    ],
)
def test_predictions_are_dumped_beside_the_metrics(model, kind):
    cfg = detector(**model)
    metric = cfg.test_evaluator
    adapt_dump(cfg, CPU, path='a/b.pkl')
    assert cfg.test_evaluator == [metric, dict(type=kind, out_file_path='a/b.pkl')]


def test_the_file_of_the_predictions_is_checked_before_the_test(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        UserError, match=r'--out .*file/a.pkl cannot be written, because .*is a fil'
    ):
        adapt_dump(detector(), CPU, path=str(tmp_path / 'file/a.pkl'))
    (tmp_path / 'folder.pkl').mkdir()
    with pytest.raises(UserError, match=r'folder.pkl is a folder'):
        adapt_dump(detector(), CPU, path=str(tmp_path / 'folder.pkl'))


def test_lr_scaling_needs_a_batch_size():
    cfg = Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=16)))
    adapt_lr_scaling(cfg, CPU)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    for missing in (dict(), dict(auto_scale_lr=dict(enable=False))):
        with pytest.raises(UserError, match='--auto-scale-lr needs the batch size'):
            adapt_lr_scaling(Config(missing), CPU)
