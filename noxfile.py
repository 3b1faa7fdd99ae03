"""The test matrix: the tests in environments with other versions, and the table in docs/support.md.

    bash tools/test_matrix.sh                # all rows without a result for the current code
    bash tools/test_matrix.sh --list
    bash tools/test_matrix.sh -s torch21 py312         # these rows, even if they have a result
    bash tools/test_matrix.sh -s torch21 -- tests/ops  # only these tests: the environment is kept,
                                                       # and no result is written

MMGCVIT_TESTS=all also runs the slow tests. Rows whose Python is not installed are skipped: nox
looks for commands such as python3.12.
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from datetime import date
from functools import partial
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent
CACHE = Path(
    os.environ.get('MMGCVIT_CACHE')
    or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmgcvit'
)
DATA, PAGE = ROOT / 'docs/data/support.json', ROOT / 'docs/support.md'
NEEDED = 8  # GB of disk space for the environment of a row
BEGIN, END = '<!-- results: made by noxfile.py -->', '<!-- end of results -->'
TIER = 'all' if os.environ.get('MMGCVIT_TESTS') == 'all' else 'quick'
# setuptools and tifffile are in the files of the stacks; the tests also build wheels
ALL_TOOLS = ('--no-deps', '-r', 'requirements/dev.txt', 'setuptools>=77,<81', 'tifffile')
# without packages that the row is about, such as timm
TEST_TOOLS = ('-c', 'requirements/dev.txt', 'pytest', 'pytest-xdist', 'hypothesis')
# as in tools/run_tests.sh
PYTEST = ('-q', '-n', 'logical', '--maxprocesses=4', '--dist', 'loadfile', '--no-loadscope-reorder')
# other installations must not be visible in the environments
HIDDEN = dict.fromkeys(('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'PYTEST_ADDOPTS'))
ENVIRON = {**HIDDEN, 'PYTHONNOUSERSITE': '1'}
VERSIONS = """
import importlib.metadata, json, platform, re
found = {d.metadata['Name']: d.version for d in importlib.metadata.distributions()}
names = r'(onedl-)?(mmengine|mmcv(-lite)?|mmdet(ection)?|mmsegmentation|mmpretrain)'
names += '|torch(vision)?|numpy'
shown = {key: found[key] for key in sorted(found) if re.fullmatch(names, key)}
print(json.dumps([platform.python_version(), shown]))
"""

# name: Python, title, and the pinned stack; or the extra of the wheel, other packages, the packages
# of the tests, and the tests, where () means all
STACKS = {
    'openmmlab': ('3.11', 'the openmmlab stack', 'openmmlab'),
    'onedl': ('3.11', 'the onedl stack', 'onedl'),
    'py310': ('3.10', 'the openmmlab stack', 'openmmlab'),
    'py312': ('3.12', 'the openmmlab stack', 'openmmlab'),
    'py313': ('3.13', 'the openmmlab stack', 'openmmlab'),
}
WHEELS = {
    'torch21': (
        *('3.10', 'the wheel, the openmmlab stack and the oldest PyTorch'),
        *('[openmmlab]', ('-c', 'requirements/torch21.txt'), ALL_TOOLS, ()),
    ),
    'wheel': (
        *('3.11', 'the wheel and the newest versions that it allows'),
        *('[openmmlab]', (), ALL_TOOLS, ()),
    ),
    'mmengine': (
        *('3.11', 'the wheel with PyTorch and mmengine alone: the backbone'),
        *('', ('mmengine', 'setuptools<81'), TEST_TOOLS),
        (
            *('tests/ops', 'tests/models', '--ignore=tests/models/test_export.py'),
            *('--ignore=tests/models/test_fx.py', '--ignore=tests/models/test_variants.py'),
        ),
    ),
    'torch': (
        *('3.11', 'the wheel with PyTorch alone: the backbone'),
        *('', ('numpy',), TEST_TOOLS),
        (
            *('tests/ops', '--ignore=tests/ops/test_changes_and_threads.py'),
            *('tests/models/test_golden.py', 'tests/models/test_arguments.py'),
            *('tests/models/test_behaviour.py', 'tests/models/test_reference.py'),
            *('-k', 'not mmengine'),
        ),
    ),
    'integrations': (
        *('3.11', 'the wheel and the other frameworks, without mmengine'),
        *('', ('-r', 'requirements/integrations.txt'), TEST_TOOLS, ('tests/integrations',)),
    ),
}
ROWS = STACKS | WHEELS


def git(*arguments: str) -> str:
    return subprocess.run(
        ['git', *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def results() -> Path:
    """Return the folder of the results for the tracked files as they are, except those in docs/."""
    code = ('--', '.', ':!docs')
    content = git('ls-files', '-s', *code) + git('diff', *code)
    return CACHE / 'matrix' / hashlib.sha256(content.encode()).hexdigest()[:16]


def pending() -> list[str]:
    """Return the rows without a result for the current code."""
    return [row for row in ROWS if not (results() / f'{row}-{TIER}.xml').is_file()]


def wheel(session: nox.Session) -> Path:
    """Build the wheel of the tracked files."""
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / 'source', ignore_errors=True)
    # a copy, because setuptools builds in the folder and packs what an earlier build left there
    for name in filter(None, git('ls-files', '-z').split('\0')):
        target = folder / 'source' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    session.run('python', '-m', 'pip', 'wheel', '--no-deps', '-w', folder, folder / 'source')
    return max(folder.glob('*.whl'), key=os.path.getmtime)


def run_row(session: nox.Session) -> None:
    """Create the environment of a row, run its tests, and write the result to the table."""
    row, start = session.name, time.monotonic()
    python, _, what, *packages = ROWS[row]
    folder = (
        CACHE / 'envs' / f'matrix-{row}' if row in STACKS else Path(session.virtualenv.location)
    )
    result = dict(python=python, versions={}, tier=TIER, reason='', counts=None)
    result |= dict(
        date=date.today().isoformat(), commit=git('rev-parse', '--short', 'HEAD').strip()
    )
    report = results() / f'{row}-{"selected" if session.posargs else TIER}.xml'
    report.parent.mkdir(parents=True, exist_ok=True)
    announce(session, python)
    report.unlink(missing_ok=True)
    partial_report = report.with_suffix('.partial')
    session.env.update(ENVIRON)
    tests: tuple[str, ...] = ()
    try:
        if row in STACKS:
            variables = {'PYTHON': f'python{python}', 'MMGCVIT_VENV': str(folder)}
            session.run('bash', 'tools/setup_env.sh', '--stack', what, env=variables, external=True)
        else:
            others, tools, tests = packages
            session.install(f'{wheel(session)}{what}', *others)
            session.run('python', '-m', 'pip', 'check')  # before the tools, without dependencies
            session.install(*tools)
        quiet = dict(silent=True, log=False, external=True)
        found = session.run(folder / 'bin/python', '-I', '-c', VERSIONS, **quiet)
        result['python'], result['versions'] = json.loads(found.splitlines()[-1])
        selected = ('-m', 'not nightly') if TIER == 'all' else ()
        # the script and not python -m pytest, which would import the checkout's package
        command = (folder / 'bin/pytest', '--junitxml', partial_report, *PYTEST, *selected)
        codes = (0, 1, 2, 5)  # 1: failed tests, 2: a module that cannot be imported, 5: no tests
        session.run(*command, *(session.posargs or tests), success_codes=codes, external=True)
        partial_report.replace(report)  # not after Ctrl-C, when pytest also writes one
    except CommandFailed as error:
        result['reason'] = f'a command failed ({error})'
    if report.is_file():
        result |= read_junit(report)
    if result['counts'] is None:
        report.unlink(missing_ok=True)  # so that the row is selected again
    if not session.posargs:
        result['seconds'] = round(time.monotonic() - start)
        write_page(row, result)
        shutil.rmtree(folder, ignore_errors=True)  # 6 GB
    if result['counts'] is None or result['reason']:
        session.error(result['reason'] or 'no test was run')


def announce(session: nox.Session, python: str) -> None:
    """Log what is left and the last duration; stop if Python or disk space is missing."""
    try:
        session.run(f'python{python}', '--version', silent=True, log=False, external=True)
    except CommandFailed:
        session.skip(f'Python {python} was not found')
    free = shutil.disk_usage(CACHE).free / 1e9
    if free < NEEDED:
        session.error(f'{CACHE} has {free:.1f} GB of free disk space, and a row needs {NEEDED} GB')
    last = read_data().get(session.name, {}).get('seconds')
    duration = f'; this row last took {last / 60:.0f} min' if last else ''
    session.log(f'{len(pending())} of {len(ROWS)} rows have no result for this code{duration}')


def read_data() -> dict[str, dict]:
    """Return the saved results of the rows."""
    return json.loads(DATA.read_text()) if DATA.is_file() else {}


def read_junit(path: Path) -> dict:
    """Return the numbers of passed, skipped and failed tests, and the first failure."""
    passed, skipped, failures = 0, 0, []
    for case in ElementTree.parse(path).iter('testcase'):
        faults = [*case.iter('failure'), *case.iter('error')]
        if faults:
            # a module that cannot be imported has no class name
            place = '::'.join(filter(None, (case.get('classname'), case.get('name'))))
            failures.append(f'{place}: {faults[0].get("message", "")}')
        elif case.find('skipped') is not None:
            skipped += 1
        else:
            passed += 1
    if not passed + len(failures):
        return dict(counts=None, reason='no test was run')
    reason = ' '.join(failures[0].split())[:200] if failures else ''
    more = f' (and {len(failures) - 1} more)' if len(failures) > 1 else ''
    return dict(counts=[passed, skipped, len(failures)], reason=reason + more)


def write_page(row: str, result: dict) -> None:
    """Replace the result of a row in the docs; the results of other rows stay."""
    saved = read_data() | {row: result}
    DATA.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + '\n')
    before, _, rest = PAGE.read_text(encoding='utf-8').partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f'{before}{BEGIN}\n{support_table(saved)}\n{END}{after}', encoding='utf-8')


def support_table(saved: dict[str, dict]) -> str:
    """Return the table of results in Markdown."""
    header = ('row', 'what is tested', 'Python', 'packages', 'tests', 'passed', 'skipped')
    lines = [(*header, 'failed', 'result', 'date, commit'), ['---'] * 10]
    for row, (python, title, *_) in ROWS.items():
        if row not in saved:
            reason = f'not run: not selected, or Python {python} was not found'
            lines.append((f'`{row}`', title, python, *('–' * 5), reason, '–'))
            continue
        result = saved[row]
        verdict = 'failed: ' if result['counts'] else 'not run: '
        lines.append(
            (
                *(f'`{row}`', title, result['python']),
                ', '.join(map(' '.join, result['versions'].items())) or '–',
                result['tier'],
                *(f'{number:,}' for number in result['counts'] or ()),
                *(() if result['counts'] else ('–', '–', '–')),
                (verdict + result['reason']).replace('|', r'\|') if result['reason'] else 'passed',
                f'{result["date"]}, {result["commit"]}',
            )
        )
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


nox.options.envdir = str(CACHE / 'envs' / 'nox-rows')
nox.options.sessions = pending()
for _row, (_python, _title, *_) in ROWS.items():
    _run = partial(run_row)
    _run.__name__, _run.__doc__ = _row, _title
    # tools/setup_env.sh creates the environments of the stacks
    nox.session(_run, python=False if _row in STACKS else _python, venv_backend='venv')
