#!/usr/bin/env bash
# Makes the Python environment of this checkout, or brings it up to date. Nothing is compiled.
#
#   bash tools/setup_env.sh [--stack openmmlab|onedl]
#   bash tools/setup_env.sh --print-hash [--stack openmmlab|onedl]
#
# Needs Linux, Python 3.10-3.13 with venv, about 10 GB of disk and a package index that pip can
# reach. Run it as often as you like: it does nothing when nothing has changed.
#
#   --stack         default: the one that the environment has, else openmmlab
#   --print-hash    print a hash of everything that decides what is installed
#   MMGCVIT_VENV    where the environment is (default: .venv in the checkout)
#   PYTHON          the interpreter to use (default: the environment's, else the newest one)
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$(realpath -ms "${MMGCVIT_VENV:-$checkout/.venv}")
records=$venv/.mmgcvit # marks the environment as ours
stamp=$records/stamp   # written last: what the finished environment was made from
log=$records/setup.log
command='bash tools/setup_env.sh'
elsewhere="choose another folder: MMGCVIT_VENV=/path/to/venv $command"
stack='' python='' version='' step='' child='' output='' doing='' print_hash='' wipe='' newline='\n'
[[ ! -t 1 ]] || { wipe='\r\e[K' newline=''; } # on a terminal, progress overwrites its line

# What is set for other Pythons, or for pip outside of environments, does not apply here.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1

fail() { # what, remedy, lines of output, exit status
    printf '%bFAILED: %s%s\n' "$wipe" "${step:+step $step: }" "$1" >&2
    [[ -z ${3:-} ]] || printf '%s\n' "$3" | cut -c 1-300 | sed 's/^ */  | /' >&2
    [[ -z $step || ! -s $log ]] || printf '  log: %s\n' "$log" >&2
    printf '  remedy: %s\n' "$2" >&2
    exit "${4:-1}"
}

# The base of a virtual environment is used, as that environment may be the one to be replaced.
ask='import importlib.util, sys
usable = all(map(importlib.util.find_spec, ("venv", "ensurepip")))
print("%d.%d.%d" % sys.version_info[:3], usable, getattr(sys, "_base_executable", sys.executable))'

pick_python() { # an interpreter to try first; sets python and version
    local candidates=("$@" python3.{13,12,11,10} python3) candidate usable complaints=''
    local debian='Debian, Ubuntu: apt-get install' name="name one: PYTHON=/path/to/python $command"
    local remedy="install one ($debian python3-venv; conda create -n py312 python=3.12) or $name"
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        # Commands that exist but do not run are common, such as the shims of pyenv.
        read -r version usable python < <("$candidate" -I -c "$ask" 2>/dev/null) || version=broken
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
    cd "$checkout" # the names of the files count, their place does not
    local files=(requirements/{"$stack",dev}.txt tools/setup_env.sh setup.py mmgcvit/*/site/_mm*)
    { echo "$version $(uname -m)" && sha256sum "${files[@]}"; } | sha256sum | cut -c 1-16
}

complete() { # the path counts too: the commands of an environment that was moved do not run
    [[ -x $venv/bin/python && -r $stamp && $(<"$stamp") == "$(content_hash) $venv" ]]
}

points_here() {
    local record path
    record=$(cat "$venv"/lib/python3*/site-packages/mmgcvit-*.dist-info/direct_url.json 2>/dev/null)
    [[ $record =~ \"editable\":\ true.*\"file://([^\"]*)\" ]] || return 1
    printf -v path %b "${BASH_REMATCH[1]//%/\\x}" # %20 is a space
    [[ $path == "$checkout" ]]
}

exit_if_up_to_date() {
    if complete && points_here; then describe 'is up to date' && exit; fi
}

describe() { # the state of the environment
    echo "$venv $1: the $stack stack on Python $version"
    echo "to use it: source $venv/bin/activate"
}

begin() { step=$1 && echo "[$1] $2"; } # step, title

# Runs a command and shows what it does. Its output goes to the log, and to a variable because the
# disk that holds the log may be full. When this script is killed, the command keeps the lock until
# it ends, which is at its next line of output, since nobody reads it.
run() {
    local line pipe shown=$SECONDS status=0
    output='' doing=working
    see "\$ $*"
    exec {pipe}< <(exec setsid "$@" 2>&1 </dev/null) # a group of its own, to be ended as a whole
    child=$!
    while IFS= read -r -t 1 -u "$pipe" line || (($? > 128)) || [[ -n $line ]]; do
        [[ -z $line ]] || see "$line"
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

see() { # a line of output
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

# What a command says, what it means, what to do. The first match counts: a full disk and an index
# out of reach cause the later ones too.
causes=(
    'problems found, see the numbered lines above' 'the environment has problems'
    "do what the numbered lines say; for a broken mmcv also: pip cache remove 'onedl_mmcv*'"
    'No space left on device|Disk quota exceeded' 'the disk is full'
    "make room (about 10 GB), or $elsewhere; PIP_CACHE_DIR moves pip's downloads"
    'Read-only file system|Permission denied' 'a folder cannot be written to'
    "make it writable, or $elsewhere"
    'onnection broken|ConnectionError|incomplete-download|timed out|SSLError|ProxyError'
    'pip cannot reach the package index'
    'check the network, the proxy (HTTPS_PROXY) and the index (pip config list), then run it again'
    'No matching distribution|ResolutionImpossible' 'pip finds no wheel for this Python and machine'
    "try another Python: PYTHON=/path/to/python3.11 $command; or check the index (pip config list)"
)

explain() { # exit status of the command that failed
    local i lines telling='^ *[A-Za-z.]*(Error|ERROR|error): |WARNING: Retrying|^[0-9]+\. .*: '
    lines=$(printf %s "$output" | grep -E "$telling" |
        sed -E '/CalledProcessError/d; s/ \(Retry\([^)]*\)\)|<[^>]* object at 0x[0-9a-f]+>: //g' |
        uniq | tail -n 5) ||
        lines=$(printf %s "$output" | tail -n 5)
    for ((i = 0; i < ${#causes[@]}; i += 3)); do
        [[ ! $output =~ ${causes[i]} ]] || fail "${causes[i + 1]}" "${causes[i + 2]}" "$lines"
    done
    fail "the command failed with exit status $1" 'see the log, then run it again' "$lines"
}

interrupted() {
    trap '' INT TERM HUP
    [[ -z $child ]] || kill -- "-$child" 2>/dev/null || true
    wait || true
    fail 'interrupted' 'run the same command again; it starts over' '' 130
}

claim() { # the folder, for this set-up alone
    local reason
    reason=$({ mkdir -p "$records" && touch "$records/lock"; } 2>&1) ||
        fail "cannot write to $venv: ${reason##*: }" "$elsewhere"
    command -v flock >/dev/null || return 0
    exec 9>>"$records/lock"
    flock -n 9 && return
    echo "waiting for another set-up of $venv"
    flock 9 || true # a file system without locks
}

clear_folder() {
    rm -f "$stamp" &&
        find "$venv/" -mindepth 1 -maxdepth 1 ! -name .mmgcvit -exec rm -rf {} + &&
        find "$records/" -mindepth 1 -maxdepth 1 ! -name lock ! -name tmp -exec rm -rf {} + &&
        echo "\"stack\": \"$stack\"" >"$records/env.json" # as version 0.1 did
}

build() {
    local requirements=$checkout/requirements/$stack.txt free
    begin 1/4 "Python $version in $venv"
    clear_folder || fail "cannot write to $venv" "$elsewhere"
    free=$(($(df --output=avail -B1 "$venv" | tail -n 1) / 10 ** 9))
    ((free >= 10)) || echo "      note: $free GB are free there, and torch with CUDA needs about 10"
    run "$python" -I -m venv --without-pip "$venv"
    run "$venv/bin/python" -I -m ensurepip # by itself, as venv hides why it fails
    pip_install --constraint "$requirements" pip
    export PIP_PROGRESS_BAR=raw # only new versions of pip have it
    begin 2/4 'torch and torchvision'
    pip_install --constraint "$requirements" torch torchvision
    begin 3/4 "the other packages of the $stack stack, the test tools, mmgcvit"
    # The files are complete. What the packages declare brings opencv-python, which needs libGL.
    pip_install --no-deps --build-constraint "$requirements" \
        -r "$requirements" -r "$checkout/requirements/dev.txt"
    point_here
    begin 4/4 'running the operators'
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
    fail "$venv is not empty and was not made by this script" "$elsewhere; or delete that one"
there=$(grep -som1 'openmmlab\|onedl' "$records/env.json") || there=${stack:-openmmlab}
[[ ${stack:=$there} == "$there" || ! -e $stamp ]] ||
    fail "$venv has the $there stack" "$elsewhere; or delete that one"
if [[ -z ${PYTHON:-} && -x $venv/bin/python ]]; then
    version=$(sed -n 's/^version = //p' "$venv/pyvenv.cfg") || true # faster than asking it
    exit_if_up_to_date
fi
pick_python "$venv/bin/python"
claim
exit_if_up_to_date # another set-up may have been at work
trap interrupted INT TERM HUP
trap 'rm -rf "$records/tmp"' EXIT
rm -rf "$records/tmp" # of a set-up that was killed
mkdir "$records/tmp" || fail "cannot write to $venv" "$elsewhere"
export TMPDIR=$records/tmp # where there is room for what pip unpacks
if complete; then
    begin 1/1 "pointing mmgcvit in $venv at $checkout"
    point_here
else
    build
fi
describe "is ready after $(clock) min"
