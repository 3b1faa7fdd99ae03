#!/usr/bin/env bash
# Train a model in a Slurm job with one task per GPU.
#
#   bash tools/slurm_train.sh PARTITION JOB CONFIG [arguments of tools/train.py]
#
# Environment variables:
#
#   GPUS            total number of GPUs (default: 8)
#   GPUS_PER_NODE   GPUs per node (default: 8, or GPUS if that is less)
#   CPUS_PER_TASK   CPU cores per task (default: 5)
#   SRUN_ARGS       additional arguments of srun, split at spaces; without GPUs, use --gres=none
#   MASTER_ADDR, MASTER_PORT   rendezvous address (default: the first node) and port (default:
#                              derived from the job id)
#   REQUEUE         1: in a batch job, requeue the job when Slurm ends it early, and resume then.
#                   Requires sbatch --requeue --signal=TERM@120, so that the job gets SIGTERM in
#                   time to save a checkpoint (here: 120 seconds before its time limit), and a
#                   fixed work dir, which is the default
#
# Exit code: 75 if SIGTERM ended the training after it had saved a checkpoint; --resume continues.
#
# Python environment of this script (not of the command mmgcvit): MMGCVIT_VENV, or .venv in the
# checkout, or the active environment.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 3 "$@"
need_config "$3"
find_python
if [[ ${REQUEUE:-0} != 1 ]]; then
    run_in_slurm "$1" "$2" train.py "$3" "${@:4}"
fi
[[ -n ${SLURM_JOB_ID:-} ]] ||
    fail 'REQUEUE=1 works only in batch jobs: submit a job script that runs this one by sbatch --requeue'
options=("${@:4}")
if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ " ${options[*]} " != *' --resume '* ]]; then
    options+=(--resume)
fi
# Slurm may send the signal to this shell as well, which has to outlive srun
trap : TERM
# srun in a job ignores --signal, but uses it for an allocation of its own
code=0
(SRUN_ARGS="--signal=TERM@120 ${SRUN_ARGS:-}" run_in_slurm "$1" "$2" train.py "$3" "${options[@]}") ||
    code=$?
if ((code == 75)); then
    scontrol requeue "$SLURM_JOB_ID" || fail "scontrol could not requeue job $SLURM_JOB_ID"
fi
exit "$code"
