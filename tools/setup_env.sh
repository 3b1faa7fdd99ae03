#!/usr/bin/env bash
# Makes the Python environment of this checkout, or brings it up to date.
#
#   bash tools/setup_env.sh [--stack openmmlab|onedl]
#   bash tools/setup_env.sh --print-hash [--stack ...]
#
# Needs Python 3.10-3.12 with headers and venv, a C++ compiler, and about 10 GB
# of disk. Run it as often as you like: it does nothing when nothing is to do.
# This file only finds a Python to work with; the work is in tools/_setup.
#
#   --stack            openmmlab (default for a new environment) or onedl
#   --print-hash       print a hash of everything that decides what is installed
#   MMGCVIT_VENV       where the environment lives (default: .venv in the checkout)
#   MMGCVIT_CACHE      where built mmcv wheels are kept (default: ~/.cache/mmgcvit)
#   PYTHON             the interpreter to build on
#   MAX_JOBS           compile jobs (default: min(cores, memory / 2 GB))
#   MMGCVIT_CUDA_OPS   mmcv's CUDA operators: 1, 0 or auto (default)
#   TORCH_CUDA_ARCH_LIST    GPU generations to compile for (default: the GPUs here)
#   MMGCVIT_SKIP_DISK_CHECK=1   try although the disk looks too small
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${MMGCVIT_VENV:-$here/../.venv}
# Modules and settings of another Python would leak into the one used here.
unset PYTHONHOME PYTHONPATH

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

fail() { # what, remedy
    printf 'FAILED: %s\n  remedy: %s\n' "$1" "$2" >&2
    exit 1
}

# Prints "ok<TAB>base interpreter", or what is wrong with this one.
probe() {
    command -v "$1" >/dev/null 2>&1 || { echo 'not found'; return; }
    # pyenv and the like leave commands that exist and only print an error.
    "$1" "$here/_setup/probe.py" 2>/dev/null || echo 'does not run'
}

remedy_for() { # complaints
    local remedy='install Python 3.11 (or 3.10, 3.12)'
    case $1 in
        *lacks*) remedy='install what is lacking' ;;
    esac
    echo "$remedy, on Debian or Ubuntu: apt-get install python3.11 python3.11-venv" \
        "python3.11-dev; or name an interpreter: PYTHON=/path/to/python3.11 bash tools/setup_env.sh"
}

pick_python() { # the script's arguments
    local candidates=(python3.12 python3.11 python3.10 python3) candidate result complaints=''
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    elif [[ $1 != *--print-hash* && -x $venv/bin/python && -d $venv/.mmgcvit ]]; then
        # An environment keeps its Python until it is made anew.
        candidates=("$venv/bin/python" "${candidates[@]}")
    fi
    for candidate in "${candidates[@]}"; do
        result=$(probe "$candidate")
        if [[ $result == ok$'\t'* ]]; then
            python=${result#*$'\t'}
            return
        fi
        complaints+="${complaints:+; }$candidate $result"
    done
    fail "no usable Python 3.10-3.12 ($complaints)" "$(remedy_for "$complaints")"
}

case ${1:-} in
    -h | --help) usage; exit 0 ;;
esac
pick_python "$*"
exec "$python" -s "$here/_setup" --venv "$venv" "$@"
