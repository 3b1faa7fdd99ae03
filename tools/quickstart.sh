#!/usr/bin/env bash
# From a bare machine to a trained GC ViT Mask R-CNN: set-up, drawn data, training, evaluation,
# pictures. A second run goes on from where the first one stopped; --fresh starts over.
#
#   bash tools/quickstart.sh [--fresh]
set -euo pipefail

# Before a set-up of minutes: a mistyped option.
case "$*" in
    '' | --fresh) ;;
    *) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [[ $* == -h || $* == --help ]]; exit ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Absolute before the folder changes: a relative one means the caller's folder.
MMGCVIT_VENV=$(realpath -ms "${MMGCVIT_VENV:-$here/../.venv}")
export MMGCVIT_VENV

bash "$here/setup_env.sh"
cd "$here/.."
exec "$MMGCVIT_VENV/bin/python" tools/quickstart.py "$@"
