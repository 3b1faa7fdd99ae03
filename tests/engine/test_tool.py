"""How the processes of tools end."""

import subprocess
import sys
import textwrap

import pytest

from mmgcvit.engine import run_tool

# Pairs of processes, one after the other; the parent imports torch for all of them.
PAIRS = """
import os, sys
import torch
import torch.distributed as dist
from mmgcvit.engine import ToolError, run_tool

folder, kind, pairs = sys.argv[1:]
codes = []
for pair in range(int(pairs)):
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            break
    if children[-1] == 0:
        break
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
else:
    print(codes)
    os._exit(0)

def main():
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/{pair}', rank=rank, world_size=2
    )
    for _ in range(5):
        dist.all_reduce(torch.ones(3))
        dist.all_gather_object([None, None], ['a'])
    if kind == 'ours':
        raise ToolError('loss is NaN')
    if kind == 'other':
        raise RuntimeError('peer left')

run_tool(main)
"""


def codes_of_pairs(folder, kind, pairs):
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(PAIRS), str(folder), kind, str(pairs)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout, done.stderr


def test_processes_that_are_connected_end_with_an_error_and_no_abort(tmp_path):
    codes, errors = codes_of_pairs(tmp_path, 'ours', 8)
    assert codes == f'{[1] * 16}\n'
    assert errors.splitlines() == ['error: loss is NaN'] * 16


def test_an_unexpected_error_is_told_in_full_and_does_not_abort_either(tmp_path):
    codes, errors = codes_of_pairs(tmp_path, 'other', 8)
    assert codes == f'{[1] * 16}\n'
    assert errors.count('Traceback') == errors.count('RuntimeError: peer left\n') == 16


def test_processes_that_end_well_take_their_leave(tmp_path):
    codes, errors = codes_of_pairs(tmp_path, 'well', 2)
    assert codes == f'{[0] * 4}\n'
    assert errors == ''


def test_a_file_that_cannot_be_had_is_one_line_and_other_system_errors_are_told_in_full(
    tmp_path, capsys
):
    def no_file():
        (tmp_path / 'nothing').read_text()

    def no_network():
        raise ConnectionResetError('peer left')

    for main in (no_file, no_network):
        with pytest.raises(SystemExit) as end:
            run_tool(main)
        assert end.value.code == 1
        printed = capsys.readouterr().err
        if main is no_file:
            assert printed.startswith('error: ') and printed.endswith("nothing'\n")
            assert printed.count('\n') == 1
        else:
            assert printed.startswith('Traceback')
            assert printed.endswith('ConnectionResetError: peer left\n')
