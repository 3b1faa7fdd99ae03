"""The commands for a cluster with Slurm, by a stand-in for it."""

import os

import forks
import pytest
from launching import UPERNET, metrics_of_test, metrics_of_validation, script

SRUN = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" >"$SRUN_ARGUMENTS"
while [[ $1 == -* ]]; do
    [[ $1 == --ntasks=* ]] && tasks=${1#*=}
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST='node[1-2]'
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    started+=("$!")
done
code=0
for process in "${started[@]}"; do wait "$process" || code=$?; done
exit "$code"
"""


@pytest.mark.slow
def test_slurm_test_gives_the_metrics_of_the_validation(run, upernet, tmp_path):
    """With stand-ins for srun and scontrol that start the tasks on this machine."""
    programs = {'srun': SRUN, 'scontrol': '#!/bin/sh\necho 127.0.0.1\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    arguments = (UPERNET, upernet[0] / 'iter_24.pth', '--work-dir', tmp_path / 'work')
    run(
        *script('slurm_test.sh', 'gpu', 'my job', *arguments),
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        SRUN_ARGUMENTS=str(tmp_path / 'arguments'),
        GPUS='2',
        SRUN_ARGS='--exclusive --time=10',
        SLURM_JOB_ID='77',
        MASTER_PORT=forks.free_port(),
    )
    given = (tmp_path / 'arguments').read_text().splitlines()
    wanted = ['--partition=gpu', '--job-name=my job', '--gres=gpu:2', '--ntasks=2']
    wanted += ['--ntasks-per-node=2', '--cpus-per-task=5', '--kill-on-bad-exit=1']
    assert given[: len(wanted) + 2] == [*wanted, '--exclusive', '--time=10']
    assert metrics_of_test(tmp_path / 'work') == metrics_of_validation(upernet[0])
