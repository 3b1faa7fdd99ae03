#!/usr/bin/env bash
# Runs the tests in environments with other versions of Python, PyTorch and the libraries, and
# writes the results to docs/support.md. The rows are in noxfile.py.
#
#   bash tools/test_matrix.sh [arguments of nox]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MMGCVIT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmgcvit}/envs/nox
if [[ ! -x $venv/bin/nox ]]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet nox==2026.10.20
fi
exec "$venv/bin/nox" --noxfile "$root/noxfile.py" --download-python never \
    --no-error-on-missing-interpreters "$@"
