#!/usr/bin/env bash
# Sets up the environment, then runs the lint gate and the tests.
#
#   bash tools/run_tests.sh [--all | --nightly] [--stack openmmlab|onedl] [pytest arguments]
#
#   --all      the slow tests too, as CI does
#   --nightly  all tests: also those that install environments or take minutes
#   --stack    see tools/setup_env.sh, as for the environment variables
#
# The tests run in one process per core, at most four; with -n 0 in a single process.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Absolute before the folder changes: a relative one means the caller's folder.
MMGCVIT_VENV=$(realpath -ms "${MMGCVIT_VENV:-$here/../.venv}")
export MMGCVIT_VENV

selection=() # pyproject.toml deselects slow and nightly tests
setup=()
arguments=()
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --all) selection=(-m 'not nightly') ;;
        --nightly) selection=(-m '') ;;
        --stack) setup+=("$1" "${2:?--stack needs a name}"); shift ;;
        --stack=*) setup+=("$1") ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

results=()
failed=0

part() { # title, command...
    local title=$1 began=$SECONDS verdict=passed
    shift
    printf '\n=== %s ===\n' "$title"
    "$@" || { verdict=FAILED; failed=1; }
    results+=("$(printf '%-14s %-7s %4d s' "$title" "$verdict" $((SECONDS - began)))")
}

end() {
    printf '\n=== result ===\n'
    printf '%s\n' "${results[@]}"
    exit "$failed"
}

part 'set-up' bash "$here/setup_env.sh" "${setup[@]}"
((failed)) && end
cd "$here/.."
python=$MMGCVIT_VENV/bin/python
part 'ruff format' "$python" -m ruff format --check .
part 'ruff check' "$python" -m ruff check .
# Tests of one file share fixtures: --dist loadfile runs them in one process.
part 'pytest' "$python" -m pytest -ra --durations=10 --durations-min=1 --disable-warnings \
    -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder \
    "${selection[@]}" "${arguments[@]}"
end
