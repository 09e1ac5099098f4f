#!/usr/bin/env bash
# Trains with several processes: tools/dist_train.sh CONFIG PROCESSES [--max-restarts N] [options of tools/train.py]
# One process a GPU; without CUDA the processes share the CPU (gloo). Several machines: run it on each with
# NNODES, NODE_RANK, MASTER_ADDR and PORT set (defaults 1, 0, 127.0.0.1 and a free port).
# --max-restarts: how often torchrun starts all processes again after one died; they then resume.
# SIGTERM, SIGUSR1 or Ctrl-C: all processes save after their iteration, exit code 85. See docs/faults.md.
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "usage: tools/dist_train.sh CONFIG PROCESSES [--max-restarts N] [options of tools/train.py]" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
words=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --max-restarts=*) export MAX_RESTARTS=${1#*=} ;;
        --max-restarts)
            export MAX_RESTARTS=${2:-}
            shift
            ;;
        *) words+=("$1") ;;
    esac
    shift
done
if [[ ! ${MAX_RESTARTS:-0} =~ ^[0-9]+$ ]]; then
    echo "error: --max-restarts is '${MAX_RESTARTS:-}', wanted a number" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/torchrun.sh" "$processes" "$here/train.py" "$config" --launcher pytorch ${words[@]+"${words[@]}"}
