"""Settings of the classification configs: sizes, windows, weights, batches and learning rates."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmgcvit import GCViT
from mmgcvit.engine import load_config
from mmgcvit.models.arch import ARCHS

FOLDER = Path(__file__).parents[2] / 'configs' / 'classification'
# name → arch, images per GPU on 32 GPUs, top-1 in the paper and on NVIDIA's model card
SIZES = {
    'xxt': ('xxtiny', 128, 79.8, 79.9),
    'xt': ('xtiny', 128, 82.0, 82.0),
    't': ('tiny', 128, 83.4, 83.5),
    't2': ('tiny2', 128, None, 83.7),
    's': ('small', 32, 83.9, 84.3),
    's2': ('small2', 32, None, 84.8),
    'b': ('base', 32, 84.4, 85.0),
    'l': ('large', 32, 84.6, 85.7),
}


@pytest.mark.parametrize('size', SIZES)
def test_published_classifiers_are_trained_from_scratch(size):
    arch, batch, paper, card = SIZES[size]
    path = FOLDER / f'gcvit_{size}.py'
    cfg = load_config(path)
    assert cfg.model.backbone == dict(type='mmgcvit.GCViT', arch=arch, image_size=224)
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 1000
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == 32 * batch
    assert cfg.optim_wrapper.optimizer.lr == 1e-3
    assert cfg.optim_wrapper.optimizer.weight_decay == 0.05
    result = f'paper: {f"top-1 {paper}" if paper else "not reported"}; model card: top-1 {card}; '
    assert result + 'ours: not trained' in path.read_text()
    with torch.device('meta'):
        model = GCViT(arch, image_size=224)
    assert [stage.window_size for stage in model.stages] == [7, 7, 14, 7]
    assert model.stages[-1].blocks[-1].drop_path.drop_rate == ARCHS[arch].drop_path_rate


@pytest.mark.parametrize(('size', 'windows'), [(384, [12, 12, 24, 12]), (512, [16, 16, 32, 16])])
def test_larger_images_are_fine_tuned_from_21k_weights(size, windows):
    cfg = load_config(FOLDER / f'gcvit_l_{size}.py')
    backbone = dict(cfg.model.backbone)
    weights = backbone.pop('init_cfg')
    assert weights.checkpoint.endswith('/gcvit_21k_large_224.pth.tar')
    assert backbone.pop('type') == 'mmgcvit.GCViT' and backbone['drop_path_rate'] == 0.1
    with torch.device('meta'):
        model = GCViT(**backbone)
    assert [stage.window_size for stage in model.stages] == windows
    pipelines = (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline)
    assert cfg.val_dataloader == cfg.test_dataloader
    for pipeline in pipelines:
        assert [step.scale for step in pipeline if 'scale' in step] == [size]
        assert not [step for step in pipeline if 'crop_size' in step]


def test_ema_is_the_only_difference_of_its_config():
    cfg, base = (load_config(FOLDER / f'gcvit_{name}.py').to_dict() for name in ('t_ema', 't'))
    assert [hook['type'] for hook in cfg.pop('custom_hooks')] == ['EMAHook']
    assert [settings.pop('work_dir') for settings in (cfg, base)] == [
        'work_dirs/gcvit_t_ema',
        'work_dirs/gcvit_t',
    ]
    assert cfg == base


def rates_of(cfg, iterations):
    """The learning rate of each iteration, with some iterations per epoch."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.optim_wrapper.optimizer.lr)
    by_epoch, by_iter = [], []
    for settings in copy.deepcopy(cfg.param_scheduler):
        converted = settings.get('convert_to_iter_based')
        epoch_length = dict(epoch_length=iterations) if converted else {}
        built = PARAM_SCHEDULERS.build(
            dict(settings, optimizer=OptimWrapper(optimizer)), default_args=epoch_length
        )
        (by_iter if converted else by_epoch).append(built)
    rates = []
    for _ in range(cfg.train_cfg.max_epochs):
        for _ in range(iterations):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in by_iter:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    return rates


@pytest.mark.filterwarnings('ignore:Detected call of')
def test_published_schedule_warms_up_and_cools_down_for_20_epochs():
    rates = rates_of(load_config(FOLDER / 'gcvit_s.py'), iterations=2)
    assert len(rates) == 600
    warm_up, cosine, cool_down = rates[:40], rates[40:560], rates[560:]
    assert rates[0] == pytest.approx(1e-6)
    assert warm_up == sorted(warm_up) and warm_up[20] == pytest.approx(5e-4, rel=0.05)
    assert cosine[0] == max(rates) == pytest.approx(1e-3)
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[260] == pytest.approx((1e-3 + 1e-5) / 2)
    # mmengine's cosine ends one step before its minimum
    assert cool_down == pytest.approx([1e-5] * 40, rel=0.01)


@pytest.mark.filterwarnings('ignore:Detected call of')
def test_cool_down_can_follow_300_epochs_as_in_timm():
    options = {'train_cfg.max_epochs': 320, 'param_scheduler.1.end': 300}
    rates = rates_of(load_config(FOLDER / 'gcvit_t.py', options=options), iterations=1)
    assert len(rates) == 320
    assert rates[290] > 1e-5 * 1.01 > rates[300]
    assert rates[300:] == pytest.approx([1e-5] * 20, rel=0.01)


def test_fine_tuning_on_folders_reads_those_of_both_splits():
    cfg = load_config(FOLDER / 'custom_folders.py')
    for split, folder in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert (dataset.type, dataset.data_prefix) == ('CustomDataset', folder)
        assert 'split' not in dataset
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_epochs == 30
    assert cfg.model.backbone.image_size == 224


def test_the_page_lists_the_configs_with_their_results():
    page = (FOLDER.parents[1] / 'docs/classification.md').read_text()
    # the last columns are the paper's accuracy, the model card's, the weights and "trained by us"
    rows = re.findall(r'^\| \[(gcvit_\w+)\].*\| (\S+) \| (\S+) \| [^|]+ \| no \|$', page, re.M)
    found = {name: results for name, *results in rows}
    for size, (_, _, *numbers) in SIZES.items():
        assert found.pop(f'gcvit_{size}') == ['–' if n is None else str(n) for n in numbers]
    assert found == {
        'gcvit_t_ema': ['83.4', '–'],
        'gcvit_l_384': ['–', '87.4'],
        'gcvit_l_512': ['–', '87.6'],
    }
