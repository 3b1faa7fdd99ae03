"""Learning rates that the configs' schedules give, iteration by iteration."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy import toy_config

from mmgcvit.engine import build_runner, load_config

ROOT = Path(__file__).parents[2]


@HOOKS.register_module(force=True)
class KeepRates(Hook):
    def before_train(self, runner):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


def rates_of(cfg, work_dir, images):
    """Train a toy model by the schedule of a config, with its batch size over 8 GPUs."""
    toy = toy_config(work_dir, batch=8 * cfg.train_dataloader.batch_size)
    toy.train_dataloader.dataset.length = images
    toy.train_cfg, toy.param_scheduler = cfg.train_cfg, cfg.param_scheduler
    toy.optim_wrapper.optimizer.lr = cfg.optim_wrapper.optimizer.lr
    toy.custom_hooks = [dict(type='KeepRates')]
    toy.default_hooks = dict(checkpoint=None, logger=None)
    runner = build_runner(toy)
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, KeepRates)]
    return hook.rates


def test_a_small_dataset_warms_up_within_its_first_epoch(tmp_path):
    cfg = load_config(ROOT / 'configs/detection/custom_coco.py')
    rates = rates_of(cfg, tmp_path, images=300)
    epoch = 300 // 16 + 1
    assert len(rates) == 36 * epoch
    assert rates[0] == pytest.approx(1e-7)
    assert rates[: epoch + 1] == sorted(rates[: epoch + 1])
    assert rates[epoch : 27 * epoch] == pytest.approx([1e-4] * 26 * epoch)
    assert rates[27 * epoch] == pytest.approx(1e-5)
    assert rates[33 * epoch] == pytest.approx(1e-6)


def test_a_short_segmentation_training_warms_up_in_a_hundredth_of_it(tmp_path):
    text = (ROOT / 'configs/segmentation/custom_dataset.py').read_text()
    base = "_base_ = './"
    text = text.replace(base, f"_base_ = '{ROOT}/configs/segmentation/")
    short = text.replace('max_iters = 160000', 'max_iters = 500')
    assert base not in short and short != text
    (tmp_path / 'short.py').write_text(short)
    cfg = Config.fromfile(tmp_path / 'short.py')
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 50
    rates = rates_of(cfg, tmp_path, images=300)
    assert len(rates) == 500
    assert rates[0] == pytest.approx(6e-11)
    assert max(rates) == pytest.approx(6e-5) and rates.index(max(rates)) in (4, 5)
    assert rates[-1] < 2e-7
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_a_single_gpu_sees_the_schedule_of_eight():
    single = load_config(ROOT / 'configs/detection/mask-rcnn_gcvit-t_fpn_1xb2-1x_coco.py')
    eight = load_config(ROOT / 'configs/detection/mask-rcnn_gcvit-t_fpn_1x_coco.py')
    assert single.train_dataloader.batch_size == eight.train_dataloader.batch_size == 2
    assert single.optim_wrapper.optimizer.lr == eight.optim_wrapper.optimizer.lr / 8
    assert single.param_scheduler[0].end == 8 * eight.param_scheduler[0].end == 20000
    assert single.param_scheduler[1] == eight.param_scheduler[1]
    assert (single.auto_scale_lr.base_batch_size, eight.auto_scale_lr.base_batch_size) == (2, 16)


def test_1x_is_12_epochs_and_3x_is_36():
    for schedule, epochs, steps in (('1x', 12, [8, 11]), ('3x', 36, [27, 33])):
        cfg = load_config(ROOT / f'configs/detection/mask-rcnn_gcvit-t_fpn_{schedule}_coco.py')
        assert cfg.train_cfg.max_epochs == epochs
        assert (cfg.param_scheduler[1].end, cfg.param_scheduler[1].milestones) == (epochs, steps)


def test_float32_has_no_trace_of_mixed_precision():
    float32, mixed = (
        load_config(ROOT / f'configs/detection/cascade-mask-rcnn_gcvit-t_fpn_{name}3x_coco.py')
        for name in ('fp32-', '')
    )
    assert float32.optim_wrapper.type == 'OptimWrapper'
    expected = dict(float32.optim_wrapper, type='AmpOptimWrapper', loss_scale='dynamic')
    assert mixed.optim_wrapper == expected
    assert float32.model == mixed.model
