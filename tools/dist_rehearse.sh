#!/usr/bin/env bash
# Rehearse a training in several processes on this node, one per GPU, or on the CPU without CUDA.
#
#   bash tools/dist_rehearse.sh CONFIG GPUS [arguments of tools/train.py]
#
# Environment variables:
#
#   PORT          a free port (default: any)
#   TMPDIR        folder for the checkpoints of the rehearsal (default: /tmp)
#
# Python environment of this script (not of the command mmgcvit): MMGCVIT_VENV, or .venv in the
# checkout, or the active environment.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 2 "$@"
need_config "$1"
need_count GPUS "$2"
if ((${NNODES:-1} > 1)); then
    fail "NNODES is $NNODES: a rehearsal runs on one node, in its temporary folder; unset NNODES"
fi
find_python
run_on_nodes "$2" rehearse.py "$1" "${@:3}"
