"""The tables of README and docs, and the metafile that they are made from."""

from pathlib import Path

import pytest
import torch
from mmengine.fileio import load

from mmgcvit import GCViT
from mmgcvit.engine import load_config
from mmgcvit.errors import UserError
from mmgcvit.models import ARCHS

ROOT = Path(__file__).parents[1]
MODELS = load(ROOT / 'metafile.yml')['Models']
NETWORKS = [model for model in MODELS if 'Config' in model]
BACKBONES = {model['Name']: model for model in MODELS if 'Config' not in model}


@pytest.mark.parametrize('path', ['README.md', 'docs/model_zoo.md', 'docs/scaling.md'])
def test_tables_are_the_metafiles(load_tool, path):
    made = load_tool('make_docs').with_tables(path, MODELS)
    assert (ROOT / path).read_text() == made, 'run python tools/make_docs.py'


def test_a_page_without_its_markers_is_an_error(load_tool):
    with pytest.raises(UserError, match=r'README.md has to have the lines'):
        load_tool('make_docs').replace_table('no markers', 'sizes', 'a table', 'README.md')


def test_metafile_is_one_that_openmmlab_reads():
    from modelindex.load_model_index import load as load_model_index

    index = load_model_index(str(ROOT / 'metafile.yml'))
    errors = [error for model in index.models for error in model.check_errors]
    assert not errors and len(index.models) == len(MODELS)


def test_metafile_lists_every_size_and_every_config():
    assert list(BACKBONES) == [f'gcvit_{name}' for name in ARCHS]
    kinds = ('detection/mask_rcnn', 'detection/cascade', 'segmentation/upernet')
    sizes = ('xxt', 'xt', 't', 't2', 's', 's2', 'b', 'l')
    expected = [f'configs/{kind}_gcvit_{size}.py' for kind in kinds for size in sizes]
    assert [model['Config'] for model in NETWORKS] == expected
    assert all(model['Name'] == Path(model['Config']).stem for model in NETWORKS)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_have_the_metafiles_parameters(name):
    with torch.device('meta'):
        model = GCViT(name.removeprefix('gcvit_'), window_size=(7, 7, 14, 7))
    params = sum(p.numel() for p in model.parameters())
    assert params == BACKBONES[name]['Metadata']['Parameters']


@pytest.mark.parametrize('network', NETWORKS, ids=lambda network: network['Name'])
def test_configs_start_from_the_metafiles_weights_and_tell_its_results(network):
    cfg = load_config(ROOT / network['Config'])
    backbone = network['Metadata']['Backbone']
    assert f'gcvit_{cfg.model.backbone.arch}' == backbone
    assert cfg.model.backbone.init_cfg.checkpoint == BACKBONES[backbone]['Weights']
    header = (ROOT / network['Config']).read_text().split('_base_')[0]
    result = next(line for line in header.splitlines() if line.startswith('# Result:'))
    metrics = network['Results'][0]['Metrics'] if 'Results' in network else {}
    told = ', '.join(f'{name.removeprefix("paper ")} {v}' for name, v in metrics.items())
    assert f'paper: {told or "not reported"}; ours: not trained' in result


def test_the_worked_example_of_scaling_is_the_formulas(load_tool):
    tool = load_tool('make_docs')
    (params,) = [m['Metadata']['Parameters'] for m in NETWORKS if m['Name'] == 'cascade_gcvit_b']
    assert tool.gradient_traffic(params, 8) == 1.75 * 4 * params
    page = ' '.join((ROOT / 'docs/scaling.md').read_text().split())
    hidden = 0.6 * 0.9 * 500
    for gpus in (8, 32):
        sent = 1e3 * tool.gradient_traffic(params, gpus) / (tool.LINKS['25 Gb/s Ethernet'] * 1e9)
        exposed = sent - hidden
        assert f'{sent:.0f} − {hidden:.0f} = {exposed:.0f} ms' in page
        assert f'{500 / (500 + exposed):.0%}'.replace('%', ' %') in page
