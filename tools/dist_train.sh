#!/usr/bin/env bash
# Trains a detector or segmentor in several processes, one a GPU; without CUDA on the CPU.
#
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
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
need_arguments 2 "$@"
need_file config "$1"
need_count GPUS "$2"
find_python
run_on_nodes "$2" train.py "$1" "${@:3}"
