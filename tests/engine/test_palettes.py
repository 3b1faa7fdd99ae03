"""Every class gets a color, in the form that mmdet's and mmseg's visualizers and datasets take."""

import pytest
from mmdet.datasets import CocoDataset
from mmdet.visualization.palette import get_palette
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmseg.datasets import ADE20KDataset

from mmgcvit.engine.device import Machine
from mmgcvit.engine.palettes import adapt_palettes, complete_palette

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def adapted(dataset, scope):
    cfg = Config(dict(train_dataloader=dict(dataset=dataset), default_scope=scope))
    adapt_palettes(cfg, Machine('cpu', 1))
    return cfg.train_dataloader.dataset


def seg(classes=('a', 'b', 'c'), kind='BaseSegDataset', **metainfo):
    return dict(
        type=kind, lazy_init=True, data_root='.', metainfo=dict(classes=classes, **metainfo)
    )


def coco(classes=('a', 'b', 'c'), **metainfo):
    return dict(type='CocoDataset', lazy_init=True, metainfo=dict(classes=classes, **metainfo))


def metainfo_of(dataset, scope):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(adapted(dataset, scope)).metainfo


def test_colors_are_made_up_like_mmdets():
    made_up = [tuple(map(int, color)) for color in get_palette(None, 4)]
    for palette in ([], None, 'random', ()):
        assert complete_palette(palette, 4) == made_up
    assert complete_palette(((1, 2, 3),), 4) == [(1, 2, 3), *made_up[1:]]
    assert complete_palette([RED, GREEN], 1) == [RED, GREEN]


PALETTES = [[RED], (RED, GREEN), [RED, GREEN, BLUE], [RED] * 5, [], None, 'random', 'xyz']


@pytest.mark.parametrize('palette', PALETTES)
@pytest.mark.parametrize('classes', [('a', 'b', 'c'), ['a', 'b', 'c']])
@pytest.mark.parametrize(('make', 'scope'), [(seg, 'mmseg'), (coco, 'mmdet')])
def test_datasets_with_any_palette_have_a_color_for_each_class(make, scope, classes, palette):
    colors = metainfo_of(make(classes, palette=palette), scope)['palette']
    assert isinstance(colors, list) and len(colors) >= 3
    assert all(len(color) == 3 for color in colors)
    if palette and not isinstance(palette, str):
        assert [tuple(color) for color in colors[: min(len(palette), 3)]] == list(palette)[:3]


def test_palettes_without_a_fault_are_not_changed():
    for dataset, scope in (
        (seg(), 'mmseg'),
        (seg(palette=[RED, GREEN, BLUE]), 'mmseg'),
        (coco(), 'mmdet'),
        (coco(palette=[RED] * 4), 'mmdet'),
        (dict(type='CocoDataset'), 'mmdet'),
        (coco(classes='no file'), 'mmdet'),
        (dict(type='NoSuchDataset', metainfo=dict(palette=[RED])), 'mmdet'),
    ):
        assert adapted(dataset, scope).to_dict() == Config(dataset).to_dict()


def test_a_subset_keeps_the_colors_of_its_classes():
    classes, palette = (ADE20KDataset.METAINFO[name] for name in ('classes', 'palette'))
    for metainfo in ({}, dict(palette=palette)):
        found = metainfo_of(seg(classes[5:7], 'ADE20KDataset', **metainfo), 'mmseg')
        assert found['palette'] == palette[5:7]


def test_more_classes_than_the_default_palette_has_colors():
    colors = metainfo_of(coco(tuple(map(str, range(90)))), 'mmdet')['palette']
    assert len(colors) == 90 and colors[:80] == CocoDataset.METAINFO['palette']


def test_classes_in_a_file_and_wrapped_datasets(tmp_path):
    (tmp_path / 'classes.txt').write_text('a\nb\nc\n')
    inner = coco(str(tmp_path / 'classes.txt'), palette=[RED])
    repeated = dict(type='RepeatDataset', times=2, dataset=inner)
    joined = adapted(dict(type='ConcatDataset', datasets=[repeated, coco(palette=[BLUE])]), 'mmdet')
    assert len(joined.datasets[0].dataset.metainfo.palette) == 3
    assert len(joined.datasets[1].metainfo.palette) == 3


def test_all_splits():
    dataset = coco(palette=[RED])
    loaders = {f'{split}_dataloader': dict(dataset=dataset) for split in ('train', 'val', 'test')}
    cfg = Config(dict(loaders, default_scope='mmdet'))
    adapt_palettes(cfg, Machine('cpu', 1))
    assert [len(cfg[name].dataset.metainfo.palette) for name in loaders] == [3, 3, 3]
    adapt_palettes(Config(dict(train_dataloader=None)), Machine('cpu', 1))
