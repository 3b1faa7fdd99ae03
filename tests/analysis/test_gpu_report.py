"""The GPU report: what it writes, whatever happens to its parts. Its parts run in forks here."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmgcvit.analysis.backbone_speed import Measurement, Settings
from mmgcvit.analysis.gpu_report import (
    GPU,
    PARTS,
    REHEARSAL,
    backbones,
    job,
    machine,
    trainings,
)
from mmgcvit.analysis.gpu_report.job import Job
from mmgcvit.analysis.gpu_report.page import Report, Section, markdown_page, picture
from mmgcvit.analysis.gpu_report.parts import Part
from mmgcvit.analysis.gpu_report.run import write_report
from mmgcvit.errors import UserError

ROOT = Path(__file__).parents[2]


def works(number):
    yield [{'number': number, 'process': os.getpid()}]


def refuses():
    yield [{'number': 0}]
    raise UserError('no such GPU')


def fails():
    yield [{'number': 0}]
    raise ValueError('illegal memory access')


def dies():
    yield [{'number': 0}]
    os.kill(os.getpid(), signal.SIGKILL)


def leaves():
    yield []
    os._exit(3)


def hangs():
    yield [{'number': 0}]
    time.sleep(60)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Write a report with parts of the given functions; return its page and its numbers."""
    # spawned processes import torch for seconds
    monkeypatch.setattr(job, 'get_context', lambda kind: multiprocessing.get_context('fork'))
    # the report hides all GPUs in a rehearsal
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', os.environ.get('CUDA_VISIBLE_DEVICES', ''))
    parts = dict(PARTS)

    def start(minutes=1, names=None, **functions):
        PARTS.clear()
        for name, jobs in functions.items():
            made = [Job(*each) for each in jobs]
            share = 0.04 if name == 'slow' else 1
            PARTS[name] = Part(name.title(), f'Text of {name}.', share, lambda *_, made=made: made)
        page = write_report(REHEARSAL, tmp_path, minutes, names)
        return page.read_text(), json.loads(page.with_suffix('.json').read_text())

    yield start
    PARTS.clear()
    PARTS.update(parts)


@pytest.mark.parametrize(
    ('function', 'reason'),
    [
        (refuses, 'no such GPU'),
        (fails, 'ValueError: illegal memory access'),
        (dies, 'its process was ended by SIGKILL, most likely because of too little memory'),
        (leaves, 'its process ended with exit code 3'),
    ],
)
def test_a_measurement_that_fails_does_not_end_the_report(run, function, reason):
    bad = ('bad', function, {})
    jobs = [('a', works, {'number': 1}), bad, ('b', works, {'number': 2})]
    page, numbers = run(first=jobs, second=[('c', works, {'number': 3})])
    assert numbers['finished'] and 'has not ended' not in page
    first, second = (numbers['sections'][name] for name in ('first', 'second'))
    assert first['missing'] == [['bad', reason]]
    assert f'\n- not measured: bad: {reason}\n' in page
    # what it has yielded is kept
    kept = [1, 0, 2] if function is not leaves else [1, 2]
    assert [row['number'] for row in first['rows']] == kept
    processes = [row['process'] for row in (first['rows'][0], first['rows'][-1], second['rows'][0])]
    # an error may leave the GPU unusable for its process
    assert (processes[0] == processes[1]) == (function is refuses)
    assert processes[1] == processes[2]


def test_a_job_of_its_own_process(run):
    jobs = [('a', works, {'number': 1}), ('b', works, {'number': 2}, True)]
    _, numbers = run(one=[*jobs, ('c', works, {'number': 3})])
    assert len({row['process'] for row in numbers['sections']['one']['rows']}) == 3


def test_a_part_that_hangs_leaves_time_to_the_others(run, capsys):
    late = [(f'late {number}', hangs, {}) for number in range(3)]
    start = time.monotonic()
    _, numbers = run(slow=late, quick=[('a', works, {'number': 1})])
    # 60 / 26 seconds, and those of the other part
    assert time.monotonic() - start < 30
    slow, quick = (numbers['sections'][name] for name in ('slow', 'quick'))
    assert [what for what, _ in slow['missing']] == ['late 0', 'late 1', 'late 2']
    assert slow['missing'][0][1] == 'not finished within 1 s'
    assert slow['missing'][-1][1] == 'the time for this part was over'
    assert [row['number'] for row in quick['rows']] == [1] and not quick['missing']
    shown = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r'\[1/2\] slow, 1 of 3: late 0; at most (60|59) s left', shown[0])
    assert shown[-1].startswith('[2/2] quick, 1 of 1: a; at most 5')


def test_selected_parts(run):
    jobs = {name: [(name, works, {'number': 1})] for name in ('first', 'second', 'third')}
    page, numbers = run(names=['third', 'first'], **jobs)
    assert [*numbers['sections']] == ['first', 'third'] and '## Second' not in page


def test_a_killed_run_leaves_what_it_has_and_no_process(run, tmp_path):
    """Killed in its second part."""
    jobs = dict(first=[('a', works, {'number': 7})], second=[('b', hangs, {})])
    process = multiprocessing.get_context('fork').Process(target=run, kwargs=jobs)
    process.start()
    deadline = time.monotonic() + 60
    message = '**The run has not ended.** Missing or incomplete: Second.'
    while not (pages := list(tmp_path.glob('*.md'))) or message not in pages[0].read_text():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    (page,) = pages
    text, numbers = page.read_text(), json.loads(page.with_suffix('.json').read_text())
    assert not numbers['finished']
    assert text.index('| 7 |') < text.index('## Second') < text.index('has not reached the end')
    worker = numbers['sections']['first']['rows'][0]['process']
    while Path(f'/proc/{worker}').exists() and time.monotonic() < deadline:
        if '\nState:\tZ' in Path(f'/proc/{worker}/status').read_text():
            break
        time.sleep(0.01)
    else:
        assert time.monotonic() < deadline


def test_an_earlier_report_of_the_day_is_kept(run, tmp_path):
    for _ in range(3):
        run(one=[('a', works, {'number': 1})])
    stems = sorted(path.stem for path in tmp_path.glob('*.md'))
    day = stems[0][:10]
    name = f'{day}-rehearsal-on-a-cpu-numbers-mean-nothing'
    assert stems == [name, f'{name}-2', f'{name}-3']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--parts tests,backbone', r'--parts backbone is not known \(did you mean backbones\?\)'),
        ('--minutes 0', r'--minutes 0 is not allowed: use a number above 0'),
        ('--minutes nan', r'--minutes nan is not allowed'),
        ('--out {file}', r'--out \S+\.md cannot be written, because \S+/file is a file'),
    ],
)
def test_options_that_are_not_allowed(load_tool, run, tmp_path, arguments, message):
    (tmp_path / 'file').write_text('')
    tool = load_tool('gpu_report')
    with pytest.raises(UserError, match=message):
        tool.main(['--device', 'cpu', *arguments.format(file=tmp_path / 'file').split()])
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.skipif(os.geteuid() == 0, reason='root can write to every folder')
def test_a_folder_that_is_not_writable(run, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match='is not writable for this user'):
        run(one=[('a', works, {'number': 1})])
    tmp_path.chmod(0o700)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_the_rehearsal_is_offered(load_tool, tmp_path):
    with pytest.raises(UserError, match=r'finds no GPU: check nvidia-smi, or pass --device cpu'):
        load_tool('gpu_report').main(['--out', str(tmp_path)])


def report(**sections):
    return Report('2026-11-27', 'NVIDIA H100 ×8', False, 'mmgcvit 0.2', True, sections)


def test_the_page():
    rows = [
        {'backbone': 'gcvit', 'size': 'tiny', 'image': '800×1280', 'precision': 'bfloat16'},
        {'backbone': 'swin', 'size': 'tiny', 'image': '512×512', 'precision': 'bfloat16'},
    ]
    for row, time_ in zip(rows, (131.49, 41.251), strict=True):
        row['training step (ms)'] = time_
    missing = [('timm', 'not installed'), ('a', 'out of memory'), ('b', 'out of memory')]
    made = report(
        backbones=Section(rows, missing, 75.4),
        profile=Section([{'kernel': 'a|b', 'launches': 4000}, {'more': None}], [], 0.2),
    )
    page = markdown_page(made, 'name', with_picture=True)
    assert page.startswith(
        '# NVIDIA H100 ×8\n\n2026-11-27; mmgcvit 0.2; all numbers: `name.json`.\n\n'
        '![Times and rates of the tables below](name.png)\n\n## Backbones\n\n'
    )
    assert '| gcvit | tiny | 800×1280 | bfloat16 | 131 |\n' in page
    assert '| swin | tiny | 512×512 | bfloat16 | 41.3 |\n' in page
    assert (
        '\n\n- not measured: timm: not installed\n- not measured: a; b: out of memory\n\n' in page
    )
    assert '\n\n*75 s*\n\n' in page and page.count('*') == 2
    assert page.endswith(
        '\n\n| kernel | launches | more |\n| --- | --- | --- |\n'
        '| a\\|b | 4000 | – |\n| – | – | – |\n'
    )
    png = picture(made)
    assert png.startswith(b'\x89PNG')
    # of the image size in the first row only
    alone = report(backbones=Section(rows[:1]))
    assert picture(alone) == png
    assert picture(report(profile=made.sections['profile'])) is None


def test_a_rehearsal_says_that_its_numbers_mean_nothing():
    made = Report('2026-11-27', 'CPU', True, 'mmgcvit 0.2', True, {})
    page = markdown_page(made, 'name', with_picture=False)
    assert page.startswith('# Rehearsal on a CPU: numbers mean nothing\n') and '![' not in page


TESTS = """
import os
import pytest

def test_good(): pass
@pytest.mark.parametrize('text', ['a b', 'c - d'])
def test_bad(text): assert text == 'x'
@pytest.mark.skip(reason='needs a GPU')
def test_skipped(): pass
@pytest.mark.nightly
def test_long(): raise ValueError
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, 'resources', lambda: tmp_path)
    folder = tmp_path / 'tests' / 'models'
    folder.mkdir(parents=True)
    (tmp_path / 'pytest.ini').write_text('[pytest]\nmarkers =\n  nightly\n')
    (folder / 'test_gpu.py').write_text(TESTS)
    return folder


def test_results_of_the_gpu_tests(checkout):
    row = [*machine.gpu_tests(['tests/*/test_gpu*.py'])][-1][0]
    failures = row.pop('first failures')
    assert row == dict(file='tests/models/test_gpu.py', passed=1, failed=2, skipped=1)
    assert failures.startswith("test_bad[a b]: AssertionError: assert 'a b' == 'x'")
    assert "; test_bad[c - d]: AssertionError: assert 'c - d' == 'x'" in failures


def test_gpu_tests_that_crash(checkout):
    (checkout / 'test_gpu_crash.py').write_text('import os\ndef test_a(): os._exit(66)\n')
    results = machine.gpu_tests(['tests/*/test_gpu*.py'])
    found = []
    with pytest.raises(
        UserError, match=r'exit code 66 in tests/models/test_gpu_crash\.py::test_a$'
    ):
        found.extend(results)
    first, second = found[-1]
    assert first['failed'] == 2
    assert second == {
        **dict(file='tests/models/test_gpu_crash.py', passed=0, failed=0, skipped=0),
        'first failures': '',
    }


def test_gpu_tests_need_a_checkout_and_pytest(checkout, monkeypatch):
    with pytest.raises(UserError, match='no tests in an installed package'):
        next(machine.gpu_tests(['tests/ops/test_*.py']))
    monkeypatch.setattr(machine.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install pytest'):
        next(machine.gpu_tests(['tests/*/test_gpu*.py']))


def test_patterns_of_the_tests_match_files():
    for plan in (REHEARSAL, GPU):
        found = [path.name for pattern in plan.tests for path in ROOT.glob(pattern)]
        assert found[0] == 'test_gpu.py'
        assert ('test_window_attention.py' in found) == (plan is GPU)


def test_jobs_of_the_report_on_a_gpu(tmp_path):
    """They are listed without a GPU: configs exist, and settings can be measured."""
    jobs = {name: part.jobs(GPU, tmp_path) for name, part in PARTS.items()}
    assert sum(part.share for part in PARTS.values()) == pytest.approx(1)
    configs = [each.arguments['config'] for each in jobs['trainings']]
    assert configs[0] == 'detection/cascade-mask-rcnn_gcvit-s_fpn_3x_coco.py'
    assert len(configs) == 9 and all((ROOT / 'configs' / name).is_file() for name in configs)
    settings = [each.arguments['settings'] for each in jobs['backbones']]
    combinations = {
        (s.arch, s.shape, s.dtype, s.name.partition('_')[0]) for s in settings if not s.compile
    }
    peers = ('gcvit', 'reference', 'swin', 'convnext', 'timm:gcvit')
    assert combinations == {
        *itertools.product(
            ('tiny', 'small', 'base'),
            ((800, 1280), (512, 512)),
            ('bfloat16', 'float16'),
            peers,
        )
    }
    # compiled networks last, each in a process of its own
    assert [job.fresh for job in jobs['backbones']] == [False] * 60 + [True] * 3
    assert [job.fresh for job in jobs['resume']] == [True, True]


def test_checkpoints_are_compared_bit_by_bit(tmp_path):
    for name, value in (('a', 1.0), ('b', 1.0 + 2**-23), ('c', 1.0)):
        state = {0: {'exp_avg': torch.full((2,), value), 'step': torch.tensor(3.0)}}
        content = {'state_dict': {'w': torch.ones(2)}, 'optimizer': {'state': state}}
        torch.save(content, tmp_path / f'{name}.pth')
    row = trainings.compare(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert row['equal bit by bit'] == 'no' and row['different'] == 1
    assert row['first that differ'] == 'optimizer.state.0.exp_avg'
    row = trainings.compare(tmp_path / 'a.pth', tmp_path / 'c.pth')
    assert row['equal bit by bit'] == 'yes' and row['tensors of weights and optimizer'] == 3


@pytest.mark.slow
def test_operators_and_kernels_of_a_backbone():
    settings = Settings('gcvit', 'xxtiny', (32, 32))
    *_, rows = backbones.attention(settings)
    calls = {}
    for row in rows:
        kind = row['operator'].strip('`') if row['mode'] != 'evaluation' else 'any'
        calls[row['mode'], kind] = calls.get((row['mode'], kind), 0) + row['calls']
    # one call in each of 2 + 2 + 6 + 2 blocks: the maps are smaller than a window
    for mode in ('training', 'training, frozen tables'):
        assert calls[mode, 'CPUAttention'] == calls[mode, 'CPUAttentionBackward'] == 12
    assert calls['evaluation', 'any'] == 12
    ((*slowest, everything),) = backbones.kernels(settings)
    assert len(slowest) == 10 and everything['share (%)'] == 100
    times = [row['time (ms)'] for row in slowest]
    assert times == sorted(times, reverse=True) and sum(times) < everything['time (ms)']


@pytest.mark.parametrize(
    ('note', 'error'),
    [('cannot be imported: no timm', UserError), ('failed: CUDA error', RuntimeError)],
)
def test_failures_of_backbones(monkeypatch, note, error):
    """A missing library leaves the process usable; another failure may not."""
    monkeypatch.setattr(backbones, 'measure_backbone', lambda settings: Measurement(note=note))
    with pytest.raises(error, match=note):
        next(backbones.speed(Settings('gcvit')))


@pytest.mark.nightly
def test_the_complete_rehearsal(tmp_path):
    command = [sys.executable, ROOT / 'tools' / 'gpu_report.py', '--device', 'cpu']
    done = subprocess.run(
        [*command, '--minutes', '60', '--out', tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob('*.md')
    assert done.stdout.endswith(f'report: {page}\n')
    numbers = json.loads(page.with_suffix('.json').read_text())
    assert numbers['finished'] and [*numbers['sections']] == [*PARTS]
    sections = {name: section['rows'] for name, section in numbers['sections'].items()}
    assert all(sections.values()), page.read_text()
    unmeasured = {what for s in numbers['sections'].values() for what, _ in s['missing']}
    assert all(what.startswith(('swin', 'convnext', 'timm')) for what in unmeasured)
    assert all(row['passed'] == row['failed'] == 0 < row['skipped'] for row in sections['tests'])
    assert [row['config'].partition('_')[0] for row in sections['trainings']] == [
        *('cascade-mask-rcnn', 'mask-rcnn', 'upernet')
    ]
    for row in sections['trainings'][:2]:
        hours = 36 * 117266 / row['images/s'] / 3600
        assert row['schedule, 1 GPU (h)'] == pytest.approx(hours)
        assert row['images/s'] == pytest.approx(1e3 * row['images per step'] / row['step (ms)'])
    (resumed,) = sections['resume']
    assert resumed['equal bit by bit'] == 'yes'
    (message,) = sections['bandwidth']
    assert message['busbw (GB/s)'] == pytest.approx(message['algbw (GB/s)'])  # of 2 processes
    assert page.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
