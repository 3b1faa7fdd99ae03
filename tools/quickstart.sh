#!/usr/bin/env bash
# Trains a small GC ViT Mask R-CNN on a new machine: sets up the environment, draws a dataset,
# trains, evaluates and plots. A second run resumes the first one; --fresh starts over.
#
#   bash tools/quickstart.sh [--fresh]
set -euo pipefail

# check the options before the setup, which takes minutes
case "$*" in
    '' | --fresh) ;;
    *) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [[ $* == -h || $* == --help ]]; exit ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# make it absolute before cd, since it may be relative to the caller's folder
MMGCVIT_VENV=$(realpath -ms "${MMGCVIT_VENV:-$here/../.venv}")
export MMGCVIT_VENV

bash "$here/setup_env.sh"
cd "$here/.."
exec "$MMGCVIT_VENV/bin/python" tools/quickstart.py "$@"
