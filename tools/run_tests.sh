#!/usr/bin/env bash
# Sets up the environment and runs the lint checks, the type checks and the tests.
#
#   bash tools/run_tests.sh [--all | --nightly] [--stack openmmlab|onedl] [pytest arguments]
#
#   --all      also run the slow tests, as CI does
#   --nightly  run all tests, including those that install environments or take minutes
#   --stack    see tools/setup_env.sh, which also describes the environment variables
#
# The tests run in one process per core, but at most four. Use -n 0 for a single process.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# make it absolute before cd, since it may be relative to the caller's folder
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
    local title=$1 start=$SECONDS result=passed
    shift
    printf '\n=== %s ===\n' "$title"
    "$@" || { result=FAILED; failed=1; }
    results+=("$(printf '%-14s %-7s %4d s' "$title" "$result" $((SECONDS - start)))")
}

end() {
    printf '\n=== result ===\n'
    printf '%s\n' "${results[@]}"
    exit "$failed"
}

part 'setup' bash "$here/setup_env.sh" "${setup[@]}"
((failed)) && end
cd "$here/.."
python=$MMGCVIT_VENV/bin/python
part 'ruff format' "$python" -m ruff format --check .
part 'ruff check' "$python" -m ruff check .
part 'mypy' "$python" -m mypy
# --dist loadfile runs the tests of a file in one process, since they share fixtures
part 'pytest' "$python" -m pytest -ra --durations=10 --durations-min=1 --disable-warnings \
    -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder \
    "${selection[@]}" "${arguments[@]}"
end
