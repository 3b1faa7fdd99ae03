"""Results of the test matrix: stored per row and state of the code, and shown in the docs."""

import hashlib
import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmengine.fileio import dump, load

from ...files import write_atomically
from ..doc_tables import markdown, replace_between
from .rows import ROWS

PAGE, DATA = Path('docs/support.md'), Path('docs/data/support.yml')
BEGIN, END = '<!-- results: made by tools/test_matrix.sh -->', '<!-- end of results -->'


@dataclass(frozen=True)
class Result:
    """Result of a row.

    Attributes:
        row: Name of the row.
        tier: 'quick' or 'all', see CONTRIBUTING.md.
        commit: Abbreviated hash of the commit.
        date: Date of the run, YYYY-MM-DD.
        python: Full version of Python, or '' without an interpreter.
        versions: Versions of the main packages by name.
        passed, skipped, failed: Numbers of tests; ``failed`` includes errors.
        seconds: Time of the environment and the tests.
        reason: Why the row failed or was not run, in one line; '' if all tests passed.
    """

    row: str
    tier: str
    commit: str
    date: str
    python: str = ''
    versions: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0
    reason: str = ''

    @property
    def is_final(self) -> bool:
        """Whether tests were run, so that a repetition would not change the result."""
        return self.passed + self.failed > 0

    @property
    def verdict(self) -> str:
        """'passed', 'failed' or 'not run', with the reason."""
        if not self.is_final:
            return f'not run: {self.reason}'
        return f'failed: {self.reason}' if self.reason else 'passed'


class Store:
    """Results by row, tier and content of the checkout.

    Args:
        cache: Folder of the results.
        checkout: The repository. The results belong to its tracked files as they are now, except
            those in ``docs/``, to which the results are written.
    """

    def __init__(self, cache: Path, checkout: Path) -> None:
        self.commit = _git(checkout, 'rev-parse', '--short', 'HEAD').strip()
        code = ('--', '.', ':!docs')
        content = _git(checkout, 'ls-files', '-s', *code) + _git(checkout, 'diff', *code)
        self.folder = cache / hashlib.sha256(content.encode()).hexdigest()[:16]

    def get(self, row: str, tier: str) -> Result | None:
        """Return the stored result of a row, or None."""
        path = self._path(row, tier)
        return Result(**json.loads(path.read_text())) if path.is_file() else None

    def put(self, result: Result) -> None:
        """Store the result of a row if tests were run."""
        if result.is_final:
            content = json.dumps(asdict(result)).encode()
            write_atomically(self._path(result.row, result.tier), content)

    def _path(self, row: str, tier: str) -> Path:
        return self.folder / f'{row}-{tier}.json'


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ['git', *arguments], cwd=checkout, check=True, capture_output=True, text=True
    )
    return done.stdout


def read_junit(path: Path) -> dict:
    """Return the numbers of tests in a report of pytest, and the reason of failures, as a dict.

    Its keys are the attributes of :class:`Result`.
    """
    passed, skipped, failures = 0, 0, []
    for case in ElementTree.parse(path).iter('testcase'):
        failure = case.find('failure')
        failure = case.find('error') if failure is None else failure
        if failure is not None:
            # a module that cannot be imported has no class name
            place = '::'.join(filter(None, (case.get('classname'), case.get('name'))))
            failures.append(f'{place}: {failure.get("message", "")}')
        elif case.find('skipped') is not None:
            skipped += 1
        else:
            passed += 1
    reason = ' '.join(failures[0].split())[:200] if failures else ''
    if len(failures) > 1:
        reason += f' (and {len(failures) - 1} more)'
    return dict(passed=passed, skipped=skipped, failed=len(failures), reason=reason)


def read_results(checkout: Path) -> dict[str, Result]:
    """Return the results in the docs by row, in the order of the rows."""
    path = checkout / DATA
    saved: Mapping[str, dict] = (load(path) if path.is_file() else None) or {}
    return {row: Result(row=row, **saved[row]) for row in ROWS if row in saved}


def write_page(checkout: Path, results: Sequence[Result]) -> None:
    """Replace the results of these rows in the docs; the results of other rows stay.

    Raises:
        UserError: If the page does not contain the two markers once.
    """
    kept = read_results(checkout) | {result.row: result for result in results}
    data = {row: asdict(kept[row]) for row in ROWS if row in kept}
    for values in data.values():
        del values['row']
    page = checkout / PAGE
    table = support_table([kept[row] for row in data])
    text = replace_between(page.read_text(encoding='utf-8'), BEGIN, END, table, page)
    content = dump(data, file_format='yml', sort_keys=False, allow_unicode=True, width=120)
    write_atomically(checkout / DATA, content.encode())
    write_atomically(page, text.encode())


def support_table(results: Sequence[Result]) -> str:
    """Return the table of results in Markdown."""
    rows = []
    for result in results:
        versions = ', '.join(f'{name} {version}' for name, version in result.versions.items())
        counts = (result.passed, result.skipped, result.failed)
        rows.append(
            [
                f'`{result.row}`',
                ROWS[result.row].title,
                result.python or ROWS[result.row].python,
                versions or '–',
                result.tier,
                *(f'{count:,}' if result.is_final else '–' for count in counts),
                result.verdict.replace('|', r'\|'),
                f'{result.date}, {result.commit}',
            ]
        )
    header = ['row', 'what is tested', 'Python', 'packages', 'tests', 'passed', 'skipped']
    return markdown([*header, 'failed', 'result', 'date, commit'], rows)
