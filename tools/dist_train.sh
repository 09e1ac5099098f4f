#!/usr/bin/env bash
# Trains with several processes: tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# One process a GPU; without CUDA the processes share the CPU (gloo). Several machines: run it on each with
# NNODES, NODE_RANK, MASTER_ADDR and PORT set (defaults 1, 0, 127.0.0.1 and a free port).
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "usage: tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/torchrun.sh" "$processes" "$here/train.py" "$config" --launcher pytorch "$@"
