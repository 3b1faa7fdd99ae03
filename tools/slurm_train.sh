#!/usr/bin/env bash
# Trains a model in a Slurm job with one task per GPU.
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
#
# Python environment: MMGCVIT_VENV, or .venv in the checkout, or the active environment.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 3 "$@"
need_file config "$3"
find_python
run_in_slurm "$1" "$2" train.py "$3" "${@:4}"
