"""README and docs: generated tables and their metafile, links, paths, and code."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MODEL_REGISTRY
from mmengine.registry import init_default_scope
from torch import nn

import mmgcvit
from mmgcvit.errors import UserError
from mmgcvit.models import ARCHS

ROOT = Path(__file__).parents[1]
MODELS = load(ROOT / 'metafile.yml')['Models']
PAGES = [
    path.relative_to(ROOT)
    for pattern in ('*.md', 'docs/*.md', 'tests/data/*/*.md')
    for path in sorted(ROOT.glob(pattern))
]
# from <!-- NAME: made by TOOL --> to <!-- end of NAME -->
GENERATED = re.compile(r'<!-- ([\w-]+): made by [\w/.]+ -->\n(.*?)<!-- end of \1 -->', re.DOTALL)
# with a unit
NUMBER = re.compile(r'[±~≈+−-]?\d[\d.,]*( ?([kMGµm]?[sBWh]?|%|×|images/s))?')


@pytest.fixture(scope='module')
def make_docs(load_tool):
    return load_tool('make_docs')


def test_tables_match_the_metafile_and_the_data(make_docs):
    for path in make_docs.TABLES:
        generated = make_docs.with_tables(path, MODELS)
        assert (ROOT / path).read_text() == generated, 'run python tools/make_docs.py'


def test_all_data_are_in_a_table(make_docs):
    generated = {name for tables in make_docs.TABLES.values() for name in tables}
    assert {*make_docs.MEASURED, *make_docs.PUBLISHED} <= generated


@pytest.mark.parametrize('page', [p for p in PAGES if 'tests' not in p.parts], ids=str)
def test_tables_of_numbers_are_generated(page):
    text = GENERATED.sub('', (ROOT / page).read_text())
    for table in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
        header, _, *rows = (cells(row) for row in table.splitlines())
        # the first column is what the numbers are about, such as a layer or an image size
        for heading, *column in list(zip(header, *rows, strict=True))[1:]:
            numbers = [cell for cell in column if NUMBER.fullmatch(cell)]
            assert len(numbers) <= len(column) / 2, (
                f'{page}: move the column {heading!r} to docs/data/, and the table to '
                'tools/make_docs.py'
            )


def cells(row):
    # a vertical bar in code is escaped
    return [cell.strip() for cell in re.split(r'(?<!\\)\|', row.strip())[1:-1]]


def test_page_without_markers_is_an_error(make_docs):
    with pytest.raises(UserError, match=r'README.md must contain the lines'):
        make_docs.replace_table('no markers', 'sizes', 'a table', 'README.md')


def test_example_in_scaling_follows_from_the_formulas(make_docs):
    name = 'cascade-mask-rcnn_gcvit-b_fpn_3x_coco'
    (params,) = [m['Metadata']['Parameters'] for m in MODELS if m['Name'] == name]
    assert make_docs.gradient_traffic(params, 8) == 1.75 * 4 * params
    page = ' '.join((ROOT / 'docs/scaling.md').read_text().split())
    hidden = 0.6 * 0.9 * 500
    for gpus in (8, 32):
        sent = (
            1e3
            * make_docs.gradient_traffic(params, gpus)
            / (make_docs.LINKS['25 Gb/s Ethernet'] * 1e9)
        )
        exposed = sent - hidden
        assert f'{sent:.0f} − {hidden:.0f} = {exposed:.0f} ms' in page
        assert f'{500 / (500 + exposed):.0%}'.replace('%', ' %') in page


def python_blocks(path):
    return re.findall(r'```python\n(.*?)```', (ROOT / path).read_text(), re.DOTALL)


def anchors(path):
    """Return the anchors that GitHub generates for the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', path.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', h).strip().lower().replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r'\]\(([^)]+)\)', (ROOT / page).read_text()):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_paths_in_pages_exist(page):
    text = (ROOT / page).read_text()
    folders = r'(?:configs|docs|mmgcvit|requirements|tests|tools|\.ci)/'
    # placeholders such as `cascade_gcvit_{size}.py` and `tools/NAME.py` are not paths
    named = re.findall(rf'(?<![\w/.$-])({folders}[\w./-]*)(?![\w./*{{-])', text)
    paths = {path.rstrip('.') for path in named if not re.search(r'NAME|SIZE', path)}
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert not missing
    for name in re.findall(r'`([\w-]+\.md)`', text):
        assert (ROOT / page).with_name(name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_python_in_pages_compiles(page):
    for block in python_blocks(page):
        compile(block, str(page), 'exec')


@pytest.mark.parametrize('page', ['README.md', 'docs/other_heads.md'])
def test_drop_in_config_is_a_complete_recipe(tmp_path, page):
    (config,) = (block for block in python_blocks(page) if block.startswith('_base_'))
    (change,) = (b for b in python_blocks('docs/other_heads.md') if b.startswith('optim_wrapper'))
    for name, text, lr in (('config', config, 1e-4), ('changed', config + change, 6e-5)):
        (tmp_path / f'{name}.py').write_text(text)
        cfg = Config.fromfile(tmp_path / f'{name}.py')
        backbone = cfg.model.backbone
        weights = next(m['Weights'] for m in MODELS if m['Metadata']['Backbone'] == backbone.arch)
        assert backbone.init_cfg == dict(type='Pretrained', checkpoint=weights)
        init_default_scope(cfg.default_scope)
        with torch.device('meta'):
            model = MODEL_REGISTRY.build(cfg.model)
        assert tuple(cfg.model.neck.in_channels) == model.backbone.out_channels
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        assert type(optimizer) is torch.optim.AdamW
        groups = optimizer.param_groups
        assert {group['lr'] for group in groups} == {lr}
        decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.LayerNorm)]
        free = {id(p) for norm in norms for p in norm.parameters()}
        free |= {id(p) for n, p in model.named_parameters() if n.endswith('bias_table')}
        assert {p for p, value in decay.items() if value == 0} == free
        assert {decay[id(p)] for p in model.parameters()} == {0, 0.05}


def test_readme_runs_in_plain_pytorch(capsys):
    (text,) = (block for block in python_blocks('README.md') if '_base_' not in block)
    exec(text, namespace := {})
    assert [tuple(m.shape[2:]) for m in namespace['feature_maps']] == [
        (200, 320),
        (100, 160),
        (50, 80),
        (25, 40),
    ]
    assert capsys.readouterr().out.strip() == re.search(r'# (\(64.+)', text)[1]


def test_citation_matches_version_and_bibtex():
    citation = load(ROOT / 'CITATION.cff', file_format='yaml')
    assert citation['version'] == mmgcvit.__version__
    (paper,) = citation['references']
    for author in paper['authors']:
        assert (
            f'{author["family-names"]}, {author["given-names"]}' in (ROOT / 'README.md').read_text()
        )


def rows(path, header):
    """Return the cells of a table without its header, which starts with the given text."""
    table = (ROOT / path).read_text().split(header)[1].split('\n\n')[0]
    return [cells(row) for row in table.splitlines()[2:] if row.startswith('|')]


def test_stem_rates_of_layer_decay_follow_from_the_formula():
    blocks = sum(ARCHS['tiny'].depths)
    rates = rows('docs/training.md', '| rate | stem')
    assert len(rates) == 4
    for rate, stem in rates:
        assert f'{float(rate) ** (blocks + 1):.2g}' == stem


def test_ratios_of_performance_follow_from_its_table():
    table = rows('docs/performance.md', '|  | params | GMAC |')
    # the columns are forward time, training time and memory, each followed by its ratio
    measured = {name: [float(c.split()[0]) for c in cells[2::2]] for name, *cells in table}
    page = ' '.join((ROOT / 'docs/performance.md').read_text().split())
    for name, *cells in table:
        ratios = [a / b for a, b in zip(measured[name], measured['gcvit'], strict=True)]
        assert [float(c) for c in cells[3::2]] == pytest.approx(ratios, abs=0.01)
    forward, training, _ = (
        a / b for a, b in zip(measured['reference'], measured['Swin-T'], strict=True)
    )
    assert f'takes {forward:.1f}× (forward) and {training:.1f}× (training) Swin-T' in page


def test_savings_in_choosing_follow_from_the_measurements():
    page = ' '.join((ROOT / 'docs/choosing.md').read_text().split())
    table = {row[0]: row[3:] for row in rows('docs/performance.md', '| `recompute` | 512×512')}
    (time, memory), (slower, smaller) = (
        [float(cell.split()[0]) for cell in table[policy]] for policy in ('`cheap`', '`block`')
    )
    less, more = 1 - smaller / memory, slower / time - 1
    assert f'needed {less:.0%} less memory and {more:.0%} more time'.replace('%', ' %') in page
