"""The commands for a cluster with Slurm, by a stand-in for it."""

import os
import subprocess

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
export SLURM_NTASKS=$tasks SLURM_NODELIST='node[1-2]' SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""


@pytest.mark.slow
def test_slurm_test_gives_the_metrics_of_the_validation(run, start_test, upernet, tmp_path):
    """With stand-ins for srun, which starts the first task, and scontrol. A fork is the second."""
    programs = {'srun': SRUN, 'scontrol': '#!/bin/sh\necho 127.0.0.1\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = dict(
        PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_ID='77', MASTER_PORT=forks.free_port()
    )
    task = dict(SLURM_PROCID='1', SLURM_LOCALID='1', SLURM_NTASKS='2', SLURM_NODELIST='node[1-2]')
    arguments = (UPERNET, upernet[0] / 'iter_24.pth', '--work-dir', tmp_path / 'work')
    second = start_test(*arguments, '--launcher', 'slurm', **job, **task)
    run(
        *script('slurm_test.sh', 'gpu', 'my job', *arguments),
        SRUN_ARGUMENTS=str(tmp_path / 'arguments'),
        GPUS='2',
        SRUN_ARGS='--exclusive --time=10',
        **job,
    )
    assert second.wait(60) == 0
    given = (tmp_path / 'arguments').read_text().splitlines()
    wanted = ['--partition=gpu', '--job-name=my job', '--gres=gpu:2', '--ntasks=2']
    wanted += ['--ntasks-per-node=2', '--cpus-per-task=5', '--kill-on-bad-exit=1']
    assert given[: len(wanted) + 2] == [*wanted, '--exclusive', '--time=10']
    assert metrics_of_test(tmp_path / 'work') == metrics_of_validation(upernet[0])


# stands in for srun: notes its arguments, and sends SIGTERM to the script that started it, too
REQUEUED_SRUN = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$NOTES/srun"
printf '%s\\n' "$OMP_NUM_THREADS" "$MKL_NUM_THREADS" "$NCCL_DEBUG" >"$NOTES/variables"
kill -TERM "$PPID"
exit "$SRUN_CODE"
"""
SCONTROL = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$NOTES/scontrol"
exit "${SCONTROL_CODE:-0}"
"""


@pytest.fixture
def slurm_train(tmp_path):
    """Run tools/slurm_train.sh with stand-ins for srun and scontrol; no Slurm is involved."""
    programs, notes = tmp_path / 'bin', tmp_path / 'notes'
    programs.mkdir(), notes.mkdir()
    for name, text in {'srun': REQUEUED_SRUN, 'scontrol': SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def train(*arguments, **environment):
        done = subprocess.run(
            ['bash', 'tools/slurm_train.sh', 'gpu', 'job', UPERNET, *map(str, arguments)],
            cwd=forks.ROOT,
            env=os.environ
            | {'PATH': f'{programs}:{os.environ["PATH"]}', 'NOTES': str(notes), 'GPUS': '2'}
            | {'OMP_NUM_THREADS': '', 'MKL_NUM_THREADS': '', 'NCCL_DEBUG': ''}
            | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        files = [notes / name for name in ('srun', 'scontrol')]
        srun, scontrol = (f.read_text().splitlines() if f.exists() else [] for f in files)
        return done.returncode, srun, scontrol, done.stderr

    return train


BATCH = {'REQUEUE': '1', 'SLURM_JOB_ID': '77'}


def test_tasks_get_a_thread_per_core_and_the_warnings_of_nccl(slurm_train, tmp_path):
    variables = tmp_path / 'notes' / 'variables'
    slurm_train(SRUN_CODE='0', CPUS_PER_TASK='7', **BATCH)
    assert variables.read_text().split() == ['7', '7', 'WARN']
    slurm_train(SRUN_CODE='0', OMP_NUM_THREADS='3', NCCL_DEBUG='INFO', **BATCH)
    assert variables.read_text().split() == ['3', '5', 'INFO']


def test_a_stopped_job_is_requeued(slurm_train):
    code, srun, scontrol, _ = slurm_train('--amp', SRUN_CODE='75', SRUN_ARGS='--exclusive', **BATCH)
    assert (code, scontrol) == (75, ['requeue 77'])
    assert '--signal=TERM@120' in srun and '--exclusive' in srun
    assert srun[-3:] == ['--amp', '--launcher', 'slurm']


@pytest.mark.parametrize('given', [[], ['--resume'], ['--resume', 'epoch_3.pth']])
def test_a_requeued_job_resumes(slurm_train, given):
    code, srun, scontrol, _ = slurm_train(*given, SRUN_CODE='0', SLURM_RESTART_COUNT='1', **BATCH)
    assert (code, scontrol) == (0, [])
    assert srun[srun.index('--resume') :] == [*(given or ['--resume']), '--launcher', 'slurm']


@pytest.mark.parametrize('code', [0, 1, 130])
def test_other_codes_do_not_requeue(slurm_train, code):
    assert slurm_train(SRUN_CODE=str(code), **BATCH)[::2] == (code, [])


def test_requeueing_needs_a_batch_job_and_scontrol(slurm_train):
    without = {'SLURM_JOB_ID': ''}
    code, srun, _, error = slurm_train(SRUN_CODE='75', **BATCH | without)
    assert (code, srun) == (1, [])
    assert error == (
        'error: REQUEUE=1 works only in batch jobs: submit a job script that runs this one by '
        'sbatch --requeue\n'
    )
    code, *_, error = slurm_train(SRUN_CODE='75', SCONTROL_CODE='1', **BATCH)
    assert code == 1 and 'scontrol could not requeue job 77' in error
