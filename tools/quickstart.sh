#!/usr/bin/env bash
# From a bare machine to a trained GC ViT Mask R-CNN: set-up, drawn data, training, evaluation,
# pictures. A second run goes on from where the first one stopped; --fresh starts over.
#
#   bash tools/quickstart.sh [--fresh]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup_env.sh
exec "${MMGCVIT_VENV:-.venv}/bin/python" tools/quickstart.py "$@"
