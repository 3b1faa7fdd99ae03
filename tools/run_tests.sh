#!/usr/bin/env bash
# Sets up the environment, then runs the lint gate and the tests.
#
#   bash tools/run_tests.sh [--all] [--stack openmmlab|onedl] [pytest arguments]
#
#   --all      the slow tests too, as CI does
#   --stack    see tools/setup_env.sh, as for the environment variables
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Absolute before the folder changes: a relative one means the caller's folder.
MMGCVIT_VENV=$(realpath -ms "${MMGCVIT_VENV:-$here/../.venv}")
export MMGCVIT_VENV

selection=(-m 'not slow')
setup=()
arguments=()
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --all) selection=() ;;
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

echo '=== set-up ==='
bash "$here/setup_env.sh" "${setup[@]}"
cd "$here/.."
python=$MMGCVIT_VENV/bin/python
part 'ruff format' "$python" -m ruff format --check .
part 'ruff check' "$python" -m ruff check .
part 'pytest' "$python" -m pytest "${selection[@]}" "${arguments[@]}"

printf '\n=== result ===\n'
printf '%s\n' "${results[@]}"
exit "$failed"
