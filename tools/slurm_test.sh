#!/usr/bin/env bash
# Evaluate a checkpoint in a Slurm job with one task per GPU.
#
#   bash tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [arguments of tools/test.py]
#
# Environment variables:
#
#   GPUS            total number of GPUs (default: 8)
#   GPUS_PER_NODE   GPUs per node (default: 8, or GPUS if that is less)
#   CPUS_PER_TASK   CPU cores per task (default: 5)
#   SRUN_ARGS       additional arguments of srun, split at spaces; without GPUs, use --gres=none
#   MASTER_ADDR, MASTER_PORT   rendezvous address (default: the first node) and port (default:
#                              derived from the job id)
#
# Python environment of this script (not of the command mmgcvit): MMGCVIT_VENV, or .venv in the
# checkout, or the active environment.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 4 "$@"
need_config "$3"
need_checkpoint "$4"
find_python
run_in_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
