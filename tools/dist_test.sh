#!/usr/bin/env bash
# Evaluate a checkpoint in several processes, one per GPU, or on the CPU without CUDA.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
#
# GPUS is the number of processes on this node. For several nodes, run the script on each node with
# these environment variables:
#
#   NNODES        number of nodes (default: 1)
#   NODE_RANK     rank of this node, from 0 to NNODES - 1 (default: 0)
#   MASTER_ADDR   address of node 0
#   PORT          a free port of node 0 (default: 29500, or any free port for a single node)
#
# Python environment of this script (not of the command mmgcvit): MMGCVIT_VENV, or .venv in the
# checkout, or the active environment.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 3 "$@"
need_config "$1"
need_checkpoint "$2"
need_count GPUS "$3"
find_python
run_on_nodes "$3" test.py "$1" "$2" "${@:4}"
