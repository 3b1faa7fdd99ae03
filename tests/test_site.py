"""The documentation site: its navigation, links and API pages, and a build of the whole site."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('docs/**/*.md'))]


class ConfigLoader(yaml.SafeLoader):
    """Loads mkdocs.yml, which contains the call of a function."""


ConfigLoader.add_multi_constructor('tag:yaml.org,2002:python/', lambda *arguments: None)


@pytest.fixture(scope='module')
def build():
    path = ROOT / 'docs' / 'site' / 'build.py'
    spec = importlib.util.spec_from_file_location('build_site', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def navigation(entries):
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [value] if isinstance(value, str) else navigation(value)


def test_each_page_is_in_the_navigation_once(build):
    listed = list(navigation(yaml.load((ROOT / 'mkdocs.yml').read_text(), ConfigLoader)['nav']))
    sources = [*PAGES, *ROOT.glob('docs/**/*.ipynb')]
    pages = [build.site_path(path).as_posix() for path in sources]
    assert sorted(listed) == sorted([*pages, 'api/index.md'])
    assert build.API in (ROOT / 'mkdocs.yml').read_text()


@pytest.mark.parametrize(
    ('page', 'link', 'expected'),
    [
        ('README.md', 'docs/training.md#evaluation', 'training.md#evaluation'),
        ('README.md', 'docs/images/sheet.png', 'images/sheet.png'),
        ('README.md', '#status', '#status'),
        ('docs/weights.md', '../README.md#license', 'index.md#license'),
        ('docs/weights.md', 'https://example.org/x.md', 'https://example.org/x.md'),
        ('docs/weights.md', '../configs/_base_/adamw.py', 'source/configs/_base_/adamw.py.md'),
        ('docs/notebooks/x.ipynb', '../weights.md', '../weights.md'),
        ('docs/notebooks/x.ipynb', '../../LICENSE', '../source/LICENSE.md'),
    ],
)
def test_links_lead_to_pages_and_listings(build, tmp_path, page, link, expected):
    pages = build.Pages(tmp_path)
    pages.add(ROOT / page, f'[a]({link})\n```bash\n[b]({link})\n```\n')
    text = (tmp_path / build.site_path(ROOT / page)).read_text()
    assert text == f'[a]({expected})\n```bash\n[b]({link})\n```\n'
    pages.add_listings()
    listing = tmp_path / build.site_path(ROOT / page).parent / expected
    assert listing.exists() == ('source/' in expected)
    if listing.suffixes[:1] == ['.py']:
        assert f'````python\n{(ROOT / "configs/_base_/adamw.py").read_text()}````\n' in (
            listing.read_text()
        )


def test_tables_are_apart_from_comments_and_keep_units_beside_numbers(build, tmp_path):
    build.Pages(tmp_path).add(ROOT / 'docs/demo.md', '<!-- x -->\n| 4 GB | a 3 of | `1 s` |\n')
    assert (tmp_path / 'demo.md').read_text() == '\n| 4\xa0GB | a 3 of | `1 s` |\n'


@pytest.mark.parametrize('link', ['nothing.md', '../configs', '../../../etc/hostname'])
def test_links_that_lead_nowhere_are_errors(build, tmp_path, link):
    with pytest.raises(
        build.SiteError, match=rf'docs/weights.md links to {re.escape(link)}, which'
    ):
        build.Pages(tmp_path).add(ROOT / 'docs' / 'weights.md', f'[a]({link})')


def test_api_has_a_page_for_each_package(build, tmp_path):
    entries = build.add_api(build.Pages(tmp_path))
    packages = [path.parent for path in ROOT.glob('mmgcvit/*/__init__.py')]
    assert {'models', 'weights', 'engine', 'datasets'} <= {path.name for path in packages}
    index = (tmp_path / 'api' / 'index.md').read_text()
    for path in packages:
        name = f'mmgcvit.{path.name}'
        assert f'      - {name}: api/{name}.md\n' in entries
        page = (tmp_path / 'api' / f'{name}.md').read_text()
        assert re.findall('^::: (.+)$', page, re.MULTILINE) == build.api_of(path) != []
        # the first line of the docstring is its description
        assert re.search(rf'\| \[{name}\]\({name}.md\) \| \S.+ \|', index)
    weights = build.api_of(ROOT / 'mmgcvit' / 'weights')
    assert weights == ['mmgcvit.weights', 'mmgcvit.weights.fit.fit']


def test_api_of_a_package_without_all_is_that_of_its_modules(build, tmp_path):
    for name in ('__init__.py', 'b.py', 'a.py', '_private.py', 'data.json'):
        (tmp_path / name).write_text('')
    assert build.api_of(tmp_path) == [f'mmgcvit.{tmp_path.name}.{name}' for name in 'ab']


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_pages_mean_the_same_in_both_dialects_of_markdown(page):
    """Python-Markdown needs blank lines above lists and tables, and indentation by 4 spaces."""
    in_code, previous = False, ''
    for number, line in enumerate(page.read_text().splitlines(), 1):
        place = f'{page.relative_to(ROOT)}:{number}: {line}'
        indent = len(line) - len(line.lstrip())
        item = r' *([-*]|\d+\.) '
        if line.lstrip().startswith('```'):
            in_code = not in_code
            assert indent % 4 == 0, place
        elif not in_code and re.match(item, line):
            assert indent % 4 == 0, place
            assert not previous or previous.startswith(' ') or re.match(item, previous), place
        elif not in_code and line.startswith('|'):
            assert not previous or previous.startswith(('|', '<!--')), place
        previous = line.rstrip()


def text_of(page):
    return re.sub(r'<[^>]+>', '', page.read_text())


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A copy of the files from which the site is built, and the command that builds it."""
    folder = tmp_path_factory.mktemp('site')
    for name in ('docs', 'mmgcvit', 'configs', 'tools', 'tests/data', 'requirements'):
        shutil.copytree(ROOT / name, folder / name)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != '.git':
            shutil.copy(path, folder)
    environment = os.environ | {'MMGCVIT_DOCS_VENV': str(folder / 'venv')}

    def run():
        command = ['bash', folder / 'tools' / 'make_site.sh']
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return folder, run


@pytest.mark.nightly
def test_site_is_built_without_network_addresses_and_machine_paths(site):
    folder, run = site
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    html = sorted((folder / 'build' / 'site').rglob('*.html'))
    assert done.stdout.endswith(f'{len(html)} pages in {folder / "build/site"}\n')
    for page in html:
        text = page.read_text()
        assert not [path for path in (str(folder), str(ROOT), sys.prefix) if path in text]
        # scripts, styles, fonts and pictures are files of the site
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^" >]+)', text)
        loaded += re.findall(
            r'<link[^>]* rel="?(?:stylesheet|preconnect)[^>]* href="?([^" >]+)', text
        )
        assert not [address for address in loaded if '//' in address], page
        if 'source' in page.relative_to(folder).parts:
            continue  # a listing
        # what Markdown would have converted
        assert not re.search(
            r'^\|[ -]|:(?:class|func|mod|meth|attr):`|^:::', text_of(page), re.MULTILINE
        )


@pytest.mark.nightly
def test_api_pages_show_the_docstrings(site):
    folder, run = site
    assert run().returncode == 0
    for package in sorted((ROOT / 'mmgcvit').glob('*/__init__.py')):
        name = f'mmgcvit.{package.parent.name}'
        page = (folder / 'build' / 'site' / 'api' / f'{name}.html').read_text()
        headings = set(re.findall(r'<h\d id="?mmgcvit\.(?:\w+\.)*(\w+)"? class="?doc', page))
        members = getattr(importlib.import_module(name), '__all__', [])
        # constants have no docstrings
        assert {member for member in members if not member.isupper()} <= headings
    assert 'Height and width of the attention windows in tokens' in (
        text_of(folder / 'build' / 'site' / 'api' / 'mmgcvit.models.html')
    )


@pytest.mark.nightly
@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('docs/demo.md', '[a](nothing.md)', 'links to nothing.md, which is not a file'),
        ('docs/demo.md', '[a](training.md#nothing)', "does not contain an anchor '#nothing'"),
        ('docs/new.md', '# A page that is not in the navigation', 'new.md'),
        ('mkdocs.yml', '  - Gone: gone.md', "'gone.md' is included in the 'nav' configuration"),
    ],
)
def test_faults_of_pages_stop_the_build(site, name, text, message):
    folder, run = site
    path = folder / name
    original = path.read_text() if path.exists() else None
    path.write_text(f'{original or ""}\n{text}\n')
    done = run()
    path.unlink() if original is None else path.write_text(original)
    assert done.returncode == 1
    assert message in done.stderr and 'Traceback' not in done.stderr
