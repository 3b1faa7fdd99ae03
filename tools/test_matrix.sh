#!/usr/bin/env bash
# Runs the tests in environments with other versions of Python, PyTorch and the libraries, and
# writes the results to docs/support.md.
#
#   bash tools/test_matrix.sh [--help] [options, see there]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# make it absolute before cd, since it may be relative to the caller's folder
MMGCVIT_VENV=$(realpath -ms "${MMGCVIT_VENV:-$here/../.venv}")
export MMGCVIT_VENV

bash "$here/setup_env.sh" # of the script below, which creates the environments of the rows
cd "$here/.."
exec "$MMGCVIT_VENV/bin/python" tools/test_matrix.py "$@"
