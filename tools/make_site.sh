#!/usr/bin/env bash
# Builds the documentation site in build/site from the pages of this repository and the docstrings.
# Broken links and anchors, and pages that are missing in mkdocs.yml, are errors.
#
#   bash tools/make_site.sh
#
# To read the site with its search, run: python -m http.server -d build/site
# The first run installs the packages of requirements/docs.txt; later runs use no network.
#
#   MMGCVIT_DOCS_VENV    environment of these packages (default: build/docs-venv)
#   PYTHON               Python interpreter for it, 3.11 or later (default: python3)
set -euo pipefail

if (($#)); then
    sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ $* == -h || $* == --help ]]
    exit
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MMGCVIT_DOCS_VENV:-$root/build/docs-venv}
requirements=$root/requirements/docs.txt

# the copy is written last, so it exists only after a complete installation
if ! cmp -s "$requirements" "$venv/docs.txt"; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $python is not Python 3.11 or later: set PYTHON to one that is" >&2
        exit 1
    fi
    echo "installing the packages of requirements/docs.txt into $venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$requirements"
    cp "$requirements" "$venv/docs.txt"
fi

exec "$venv/bin/python" "$root/docs/site/build.py"
