#!/usr/bin/env bash
# Evaluates a checkpoint in a job of Slurm, one task a GPU.
#
#   bash tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [arguments of tools/test.py]
#
#   GPUS            GPUs in all (8)
#   GPUS_PER_NODE   of one node (8, or GPUS if that is less)
#   CPUS_PER_TASK   cores of each task (5)
#   SRUN_ARGS       more arguments of srun, divided at spaces; without GPUs: --gres=none
#   MASTER_ADDR, MASTER_PORT   where the tasks meet (the first node; a port by the job's number)
#
# It uses the environment MMGCVIT_VENV, else .venv in the checkout, else the active one.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 4 "$@"
need_file config "$3"
need_checkpoint "$4"
find_python
run_in_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
