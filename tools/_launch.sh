# shellcheck shell=bash
# Functions shared by tools/dist_*.sh and tools/slurm_*.sh.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { # message
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# Prints the header comment of the calling script.
usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "$0"; }

# Prints the usage and exits on -h, or if there are fewer arguments than the given number.
need_arguments() { # number, arguments...
    local number=$1 argument
    shift
    for argument; do
        case $argument in -h | --help) usage; exit 0 ;; esac
    done
    if (($# < number)); then
        usage >&2
        exit 2
    fi
}

need_count() { # name, value
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 must be an integer of at least 1, got '$2'"
}

need_file() { # kind, path
    [[ -d $2 ]] && fail "the $1 $2 is a folder: pass the path of a file in it"
    [[ -f $2 ]] || fail "the $1 $2 does not exist (current folder: $PWD)"
}

need_config() { # path, or name of a config of mmgcvit, which the tool finds
    [[ $1 == mmgcvit::* || -f $root/configs/${1#configs/} ]] || need_file config "$1"
}

need_checkpoint() { # path or URL
    [[ $1 == *://* ]] || need_file checkpoint "$1"
}

# Sets $python to the Python of the command mmgcvit, of MMGCVIT_VENV, of .venv in the checkout or of
# the active environment, in this order.
find_python() {
    if [[ -n ${MMGCVIT_PYTHON:-} ]]; then # see mmgcvit/cli.py
        python=$MMGCVIT_PYTHON
    elif [[ -n ${MMGCVIT_VENV:-} ]]; then
        python=$MMGCVIT_VENV/bin/python
        [[ -x $python ]] || fail "MMGCVIT_VENV is $MMGCVIT_VENV, which has no bin/python"
    elif [[ -x $root/.venv/bin/python ]]; then
        python=$root/.venv/bin/python
    else
        python=$(command -v python || true)
        [[ -n $python ]] || fail 'no Python found: run tools/setup_env.sh, or activate a venv'
    fi
    # mmgcvit may not be installed in environments that tools/setup_env.sh has not created
    [[ ! -d $root/mmgcvit ]] || export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
}

# Runs a tool in several processes on this node, as one of NNODES nodes.
run_on_nodes() { # processes, tool, arguments...
    local processes=$1 tool=$2 nodes=${NNODES:-1} node=${NODE_RANK:-0}
    shift 2
    need_count NNODES "$nodes"
    if ! [[ $node =~ ^[0-9]+$ ]] || ((node >= nodes)); then
        fail "NODE_RANK must be from 0 to NNODES - 1 = $((nodes - 1)), got '$node'"
    fi
    if [[ -n ${PORT:-} ]] && { ! [[ $PORT =~ ^[0-9]+$ ]] || ((PORT < 1 || PORT > 65535)); }; then
        fail "PORT must be from 1 to 65535, got '$PORT'"
    fi
    if ((nodes > 1)) && [[ -z ${MASTER_ADDR:-} ]]; then
        fail "NNODES is $nodes: set MASTER_ADDR to the address of node 0"
    fi
    exec "$python" "$root/tools/_launch.py" "$processes" "$root/tools/$tool" "$@" --launcher pytorch
}

# Runs a tool in a Slurm job with GPUS tasks.
run_in_slurm() { # partition, job, tool, arguments...
    local partition=$1 job=$2 tool=$3 gpus=${GPUS:-8} cpus=${CPUS_PER_TASK:-5} per_node more
    shift 3
    need_count GPUS "$gpus"
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    need_count GPUS_PER_NODE "$per_node"
    need_count CPUS_PER_TASK "$cpus"
    read -ra more <<<"${SRUN_ARGS:-}"
    command -v srun >/dev/null || fail 'srun not found: run this on a node of a Slurm cluster'
    # for the reasons, see tools/_launch.py
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus} MKL_NUM_THREADS=${MKL_NUM_THREADS:-$cpus}
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
    exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=1 \
        "${more[@]}" "$python" -u "$root/tools/$tool" "$@" --launcher slurm
}
