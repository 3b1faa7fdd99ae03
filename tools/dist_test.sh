#!/usr/bin/env bash
# Evaluates a checkpoint in several processes, one a GPU; without CUDA on the CPU.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
#
# GPUS is the number of processes on this node. For several nodes run it on each of them with
#
#   NNODES        number of nodes (1)
#   NODE_RANK     number of this node, from 0 (0)
#   MASTER_ADDR   address of node 0
#   PORT          a free port of node 0 (29500; on a single node any free one)
#
# It uses the environment MMGCVIT_VENV, else .venv in the checkout, else the active one.
set -euo pipefail

# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 3 "$@"
need_file config "$1"
need_checkpoint "$2"
need_count GPUS "$3"
find_python
run_on_nodes "$3" test.py "$1" "$2" "${@:4}"
