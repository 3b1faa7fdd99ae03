#!/usr/bin/env bash
# Creates or updates the Python environment of this checkout. Nothing is compiled.
#
#   bash tools/setup_env.sh [--stack openmmlab|onedl]
#   bash tools/setup_env.sh --print-hash [--stack openmmlab|onedl]
#
# Requirements: Linux, Python 3.10-3.13 with venv, about 10 GB of disk space and a package index
# that pip can reach. The script can be run again at any time; without changes, it does nothing.
#
#   --stack         stack to install (default: the existing environment's, or openmmlab)
#   --print-hash    print a hash of everything that determines the environment, then exit
#   MMGCVIT_VENV    folder of the environment (default: .venv in the checkout)
#   PYTHON          Python interpreter (default: the existing environment's, or the newest)
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$(realpath -ms "${MMGCVIT_VENV:-$checkout/.venv}")
records=$venv/.mmgcvit # exists only in environments created by this script
stamp=$records/stamp   # written last: hash and path of the finished environment
log=$records/setup.log
command='bash tools/setup_env.sh'
elsewhere="choose another folder: MMGCVIT_VENV=/path/to/venv $command"
stack='' python='' version='' step='' child='' output='' doing='' print_hash='' wipe='' newline='\n'
[[ ! -t 1 ]] || { wipe='\r\e[K' newline=''; } # on a terminal, progress overwrites its line

# settings for other Python installations, or for pip outside of environments, must not apply
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1

fail() { # message, remedy, lines of output, exit status
    printf '%bFAILED: %s%s\n' "$wipe" "${step:+step $step: }" "$1" >&2
    [[ -z ${3:-} ]] || printf '%s\n' "$3" | cut -c 1-300 | sed 's/^ */  | /' >&2
    [[ -z $step || ! -s $log ]] || printf '  log: %s\n' "$log" >&2
    printf '  remedy: %s\n' "$2" >&2
    exit "${4:-1}"
}

# in a virtual environment, use its base interpreter, since the environment may be replaced
probe='import importlib.util, sys
usable = all(map(importlib.util.find_spec, ("venv", "ensurepip")))
print("%d.%d.%d" % sys.version_info[:3], usable, getattr(sys, "_base_executable", sys.executable))'

pick_python() { # interpreter to try first; sets python and version
    local candidates=("$@" python3.{13,12,11,10} python3) candidate usable complaints=''
    local debian='Debian, Ubuntu: apt-get install' name="set it: PYTHON=/path/to/python $command"
    local remedy="install one ($debian python3-venv; conda create -n py312 python=3.12) or $name"
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        # commands that exist but do not run are common, for example pyenv's shims
        read -r version usable python < <("$candidate" -I -c "$probe" 2>/dev/null) || version=broken
        case "$version ${usable:-}" in
            3.1[0-3].*' True') return ;;
            3.1[0-3].*)
                complaints+=", $candidate ($version) has no venv module"
                remedy="install the module ($debian python${version%.*}-venv) or $name"
                ;;
            broken*) complaints+=", $candidate does not run" ;;
            *) complaints+=", $candidate is Python $version" ;;
        esac
    done
    complaints=${complaints:-, ${PYTHON:-python3} not found}
    fail "no usable Python 3.10-3.13: ${complaints#, }" "$remedy"
}

content_hash() {
    cd "$checkout" # so that the hash includes relative paths and not the location of the checkout
    local files=(requirements/{"$stack",dev}.txt tools/setup_env.sh setup.py mmgcvit/*/site/_mm*)
    {
        echo "$version $(uname -m)"
        sha256sum "${files[@]}"
        sed '/^\[tool\.[^s]/q' pyproject.toml # up to the settings of other tools than setuptools
    } | sha256sum | cut -c 1-16
}

complete() { # compares the path too, since the commands of a moved environment do not run
    [[ -x $venv/bin/python && -r $stamp && $(<"$stamp") == "$(content_hash) $venv" ]]
}

points_here() { # and has the version of the checkout in its metadata
    local record path release
    release=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$checkout/mmgcvit/version.py")
    record=$(cat "$venv"/lib/python3*/*/mmgcvit-"$release".dist-info/direct_url.json 2>/dev/null)
    [[ $record =~ \"editable\":\ true.*\"file://([^\"]*)\" ]] || return 1
    printf -v path %b "${BASH_REMATCH[1]//%/\\x}" # %20 is a space
    [[ $path == "$checkout" ]]
}

exit_if_up_to_date() {
    if complete && points_here; then describe 'is up to date' && exit; fi
}

describe() { # state of the environment
    echo "$venv $1: the $stack stack on Python $version"
    echo "to use it: source $venv/bin/activate"
}

begin() { step=$1 && echo "[$1] $2"; } # step, title

# Runs a command and shows its progress. The output goes to the log, and to a variable in case the
# disk of the log is full. If this script is killed, the command keeps the lock until it exits, at the
# latest when it writes its next line to the closed pipe.
run() {
    local line pipe shown=$SECONDS status=0
    output='' doing=working
    log_line "\$ $*"
    exec {pipe}< <(exec setsid "$@" 2>&1 </dev/null) # its own process group, so it can be killed
    child=$!
    while IFS= read -r -t 1 -u "$pipe" line || (($? > 128)) || [[ -n $line ]]; do
        [[ -z $line ]] || log_line "$line"
        [[ -n $wipe ]] || ((SECONDS - shown >= 15)) || continue
        printf '%b      %.72s%b' "$wipe" "$(clock)  $doing" "$newline"
        shown=$SECONDS
    done
    exec {pipe}<&-
    wait "$child" || status=$?
    child=''
    printf %b "$wipe"
    ((status == 0)) || explain "$status"
}

log_line() { # line of output
    local commas=${1//[^,]/}
    if [[ $1 =~ ^Progress\ ([0-9]+)\ of\ ([1-9][0-9]*)$ ]]; then
        doing="${doing%% at *} at $((100 * BASH_REMATCH[1] / BASH_REMATCH[2]))%"
        return
    elif [[ $1 == 'Installing collected packages:'* ]]; then
        doing="Installing packages: $((${#commas} + 1))"
    elif [[ $1 =~ ^\ *(Collecting|Downloading|Building\ wheel\ for)\ ([^ ]*/)?([^ ]*) ]]; then
        doing="${BASH_REMATCH[1]} ${BASH_REMATCH[3]}"
    fi
    output+=$1$'\n'
    printf '%s\n' "$1" 2>/dev/null >>"$log" || true
}

clock() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

# Pattern in the output, cause, remedy. The first match is used, because a full disk or an
# unreachable index also leads to the later patterns.
causes=(
    'problems found, see the numbered lines above' 'the environment has problems'
    "follow the numbered lines; for a broken mmcv, also run: pip cache remove 'onedl_mmcv*'"
    'No space left on device|Disk quota exceeded' 'the disk is full'
    "free about 10 GB, or $elsewhere; PIP_CACHE_DIR sets the folder of pip's downloads"
    'Read-only file system|Permission denied' 'a folder cannot be written to'
    "make it writable, or $elsewhere"
    'onnection broken|ConnectionError|incomplete-download|timed out|SSLError|ProxyError'
    'pip cannot reach the package index'
    'check the network, the proxy (HTTPS_PROXY) and the index (pip config list), and try again'
    'No matching distribution|ResolutionImpossible' 'pip finds no wheel for this Python and machine'
    "try another Python: PYTHON=/path/to/python3.11 $command; or check the index (pip config list)"
)

explain() { # exit status of the command that failed
    local i lines pattern='^ *[A-Za-z.]*(Error|ERROR|error): |WARNING: Retrying|^[0-9]+\. .*: '
    lines=$(printf %s "$output" | grep -E "$pattern" |
        sed -E '/CalledProcessError/d; s/ \(Retry\([^)]*\)\)|<[^>]* object at 0x[0-9a-f]+>: //g' |
        uniq | tail -n 5) ||
        lines=$(printf %s "$output" | tail -n 5)
    for ((i = 0; i < ${#causes[@]}; i += 3)); do
        [[ ! $output =~ ${causes[i]} ]] || fail "${causes[i + 1]}" "${causes[i + 2]}" "$lines"
    done
    fail "the command failed with exit status $1" 'check the log and try again' "$lines"
}

interrupted() {
    trap '' INT TERM HUP
    [[ -z $child ]] || kill -- "-$child" 2>/dev/null || true
    wait || true
    fail 'interrupted' 'run the same command again; it starts over' '' 130
}

lock() { # prevents other setups of the same environment
    local reason
    reason=$({ mkdir -p "$records" && touch "$records/lock"; } 2>&1) ||
        fail "cannot write to $venv: ${reason##*: }" "$elsewhere"
    command -v flock >/dev/null || return 0
    exec 9>>"$records/lock"
    flock -n 9 && return
    echo "waiting for another setup of $venv"
    flock 9 || true # the file system may not support locks
}

clear_folder() {
    rm -f "$stamp" &&
        find "$venv/" -mindepth 1 -maxdepth 1 ! -name .mmgcvit -exec rm -rf {} + &&
        find "$records/" -mindepth 1 -maxdepth 1 ! -name lock ! -name tmp -exec rm -rf {} + &&
        echo "\"stack\": \"$stack\"" >"$records/env.json" # the format of version 0.1
}

build() {
    local requirements=$checkout/requirements/$stack.txt free
    begin 1/4 "Python $version in $venv"
    clear_folder || fail "cannot write to $venv" "$elsewhere"
    free=$(($(df --output=avail -B1 "$venv" | tail -n 1) / 10 ** 9))
    ((free >= 10)) || echo "      note: only $free GB are free; torch with CUDA needs about 10 GB"
    run "$python" -I -m venv --without-pip "$venv"
    run "$venv/bin/python" -I -m ensurepip # separate, since venv hides the cause of a failure
    pip_install --constraint "$requirements" pip
    export PIP_PROGRESS_BAR=raw # only supported by new versions of pip
    begin 2/4 'torch and torchvision'
    pip_install --constraint "$requirements" torch torchvision
    begin 3/4 "other packages of the $stack stack, test tools and mmgcvit"
    # The files list all packages. Without --no-deps, pip would install opencv-python, which needs
    # libGL.
    pip_install --no-deps --build-constraint "$requirements" \
        -r "$requirements" -r "$checkout/requirements/dev.txt"
    point_here
    begin 4/4 'checking the environment'
    run "$venv/bin/python" -I "$checkout/tools/check_env.py"
    echo "$(content_hash) $venv" >"$stamp" || fail "cannot write to $venv" "$elsewhere"
}

point_here() { pip_install --no-deps --no-build-isolation --editable "$checkout"; }
pip_install() { run "$venv/bin/python" -I -m pip install "$@"; }

while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --print-hash) print_hash=1 ;;
        --stack) stack=${2:-' '}; shift $(($# > 1)) ;;
        --stack=*) stack=${1#*=} ;;
        *) fail "unknown option $1" "see $command --help" '' 2 ;;
    esac
    shift
done
[[ $stack =~ ^(openmmlab|onedl)?$ ]] || fail "unknown stack '$stack'" 'use openmmlab or onedl' '' 2
if [[ -n $print_hash ]]; then
    stack=${stack:-openmmlab}
    pick_python
    content_hash
    exit
fi

[[ -d $records || -z $(ls -A "$venv" 2>/dev/null) ]] ||
    fail "$venv is not empty and was not created by this script" "$elsewhere, or delete $venv"
existing=$(grep -som1 'openmmlab\|onedl' "$records/env.json") || existing=${stack:-openmmlab}
[[ ${stack:=$existing} == "$existing" || ! -e $stamp ]] ||
    fail "$venv has the $existing stack" "$elsewhere, or delete $venv"
if [[ -z ${PYTHON:-} && -x $venv/bin/python ]]; then
    version=$(sed -n 's/^version = //p' "$venv/pyvenv.cfg") || true # faster than starting Python
    exit_if_up_to_date
fi
pick_python "$venv/bin/python"
lock
exit_if_up_to_date # another setup may have finished meanwhile
trap interrupted INT TERM HUP
trap 'rm -rf "$records/tmp"' EXIT
rm -rf "$records/tmp" # may be left by a setup that was killed
mkdir "$records/tmp" || fail "cannot write to $venv" "$elsewhere"
export TMPDIR=$records/tmp # pip unpacks large files, and /tmp may be small
if complete; then
    begin 1/1 "pointing mmgcvit in $venv at $checkout"
    point_here
else
    build
fi
describe "is ready after $(clock) min"
