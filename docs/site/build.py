"""Builds the documentation site from the pages of this repository and the docstrings.

tools/make_site.sh installs what this needs (requirements/docs.txt) and runs it. The code of mmgcvit
is read and not imported: neither PyTorch nor OpenMMLab is needed.

MkDocs reads copies of the Markdown files and notebooks in build/pages. In these copies, links to
other files of the repository are replaced by links to listings of these files.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
BUILD = ROOT / 'build'
# pages outside of docs/
NAMES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
}
LISTINGS = Path('source')
LANGUAGES = {'.py': 'python', '.yml': 'yaml', '.cff': 'yaml', '.sh': 'bash', '.json': 'json'}
LINK = re.compile(r'(?<=\]\()[^)\s]+(?=\))')
UNIT = re.compile(r'(?<=\d) (?=(?:k?B|[MG]B?|[mµ]?s|h|%) \|)')
API = '  - API: api/index.md\n'  # in mkdocs.yml


class SiteError(Exception):
    """A page that cannot be built."""


def site_path(path: Path) -> Path:
    """Return the path of a file of the repository in the folder of all pages."""
    name = path.relative_to(ROOT)
    if name.as_posix() in NAMES:
        return Path(NAMES[name.as_posix()])
    if path.is_relative_to(DOCS) and path.suffix in ('.md', '.png'):
        return path.relative_to(DOCS)
    if path.suffix == '.ipynb':
        return path.relative_to(DOCS).with_suffix('.md')
    return LISTINGS / f'{name}.md'


class Pages:
    """The folder of all pages that MkDocs reads.

    Attributes:
        folder: The folder.
        listed: Files that are not pages and to which pages link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listed: set[Path] = set()

    def write(self, path: Path, content: str | bytes) -> None:
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def add(self, source: Path, text: str, files: Mapping[str, bytes] | None = None) -> None:
        """Write a page of the repository with the site's links, and files that belong to it."""
        files = files or {}
        for name, content in files.items():
            self.write(site_path(source).parent / name, content)

        def site_link(link: re.Match) -> str:
            return link[0] if link[0] in files else self.site_link(link[0], source)

        lines, in_code = [], False
        for line in text.splitlines():
            in_code ^= line.lstrip().startswith('```')
            if not in_code:
                line = LINK.sub(site_link, line)
                # Python-Markdown does not recognize a table directly below a comment
                line = re.sub(r'^<!--.*-->$', '', line)
                # cells do not break between a number and its unit
                line = UNIT.sub('\N{NO-BREAK SPACE}', line)
            lines.append(f'{line}\n')
        self.write(site_path(source), ''.join(lines))

    def site_link(self, link: str, source: Path) -> str:
        """Return the link between pages of the site that replaces a link in a page.

        Raises:
            SiteError: If the target does not exist in the repository.
        """
        name, hash_, anchor = link.partition('#')
        if '://' in link or not name:
            return link
        target = Path(os.path.normpath(source.parent / name))
        if not target.is_file() or not target.is_relative_to(ROOT):
            raise SiteError(
                f'{source.relative_to(ROOT)} links to {name}, which is not a file in this checkout'
            )
        path = site_path(target)
        if path.is_relative_to(LISTINGS):
            self.listed.add(target)
        return os.path.relpath(path, site_path(source).parent) + hash_ + anchor

    def add_listings(self) -> None:
        for path in self.listed:
            text = path.read_text(encoding='utf-8').rstrip()
            self.write(
                site_path(path),
                f'---\nsearch:\n  exclude: true\n---\n\n# {path.relative_to(ROOT).as_posix()}\n\n'
                f'````{LANGUAGES.get(path.suffix, "text")}\n{text}\n````\n',
            )


def add_repository(pages: Pages) -> None:
    """Add the Markdown files, the notebooks and the pictures of the repository."""
    for path in [*(ROOT / name for name in NAMES), *DOCS.rglob('*.md')]:
        if path.exists():
            pages.add(path, path.read_text(encoding='utf-8'))
    for path in DOCS.rglob('*.ipynb'):
        add_notebook(pages, path)
    for path in DOCS.rglob('*.png'):
        pages.write(site_path(path), path.read_bytes())
    pages.write(Path('extra.css'), (DOCS / 'site' / 'extra.css').read_bytes())


def add_notebook(pages: Pages, path: Path) -> None:
    """Add a notebook with its stored outputs."""
    from nbconvert import MarkdownExporter

    folder = {'output_files_dir': f'{path.stem}_files'}
    text, resources = MarkdownExporter().from_filename(str(path), resources=folder)
    pages.add(path, text, resources['outputs'])


def api_of(package: Path) -> list[str]:
    """Return the names of the objects whose docstrings the page of a package shows.

    These are the package itself if it has ``__all__``, and its modules otherwise. In the page of a
    package, mkdocstrings omits functions with the name of their module, such as ``weights.fit``:
    they are added.
    """
    name = f'mmgcvit.{package.name}'
    modules = {path.stem for path in package.glob('[!_]*.py')}
    modules |= {path.parent.name for path in package.glob('*/__init__.py')}
    for node in ast.parse((package / '__init__.py').read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            members = modules & set(ast.literal_eval(node.value))
            return [name, *(f'{name}.{member}.{member}' for member in sorted(members))]
    return [f'{name}.{module}' for module in sorted(modules)]


def add_api(pages: Pages) -> str:
    """Add a page per package and a page that lists them. Return their part of the navigation."""
    table = '# API\n\n| package | content |\n|---|---|\n'
    navigation = '  - API:\n      - api/index.md\n'
    for init in sorted((ROOT / 'mmgcvit').glob('*/__init__.py')):
        package = f'mmgcvit.{init.parent.name}'
        docstring = ast.get_docstring(ast.parse(init.read_text(encoding='utf-8'))) or ''
        table += f'| [{package}]({package}.md) | {docstring.partition(chr(10))[0]} |\n'
        navigation += f'      - {package}: api/{package}.md\n'
        text = f'# {package}\n'
        for name in api_of(init.parent):
            heading = str(name != package).lower()
            text += f'\n::: {name}\n    options: {{show_root_heading: {heading}}}\n'
        pages.write(Path('api', f'{package}.md'), text)
    pages.write(Path('api', 'index.md'), table)
    return navigation


def build() -> None:
    """Build the site in build/site.

    Raises:
        SiteError: If a link is broken, or MkDocs reports a warning.
    """
    shutil.rmtree(BUILD / 'pages', ignore_errors=True)
    pages = Pages(BUILD / 'pages')
    add_repository(pages)
    pages.add_listings()
    config = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    (BUILD / 'mkdocs.yml').write_text(config.replace(API, add_api(pages)), encoding='utf-8')
    # --quiet would also hide the warnings from --strict
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict']
    command += ['--config-file', str(BUILD / 'mkdocs.yml')]
    # Material for MkDocs announces the end of its support; see requirements/docs.txt
    if subprocess.run(command, env=os.environ | {'NO_MKDOCS_2_WARNING': '1'}).returncode:
        raise SiteError('the site was not built, because of the problems above')


def main() -> None:
    try:
        build()
    except SiteError as error:
        sys.exit(f'error: {error}')
    site = BUILD / 'site'
    print(f'{sum(1 for _ in site.rglob("*.html"))} pages in {site}')


if __name__ == '__main__':
    main()
