#!/usr/bin/env bash
# Generates with several processes: tools/dist_generate.sh CONFIG CKPT PROCESSES [options of tools/generate.py]
# The files are the same as with one process. See tools/dist_train.sh for several machines (they need a common OUT folder).
set -euo pipefail
if [[ $# -lt 3 ]]; then
    echo "usage: tools/dist_generate.sh CONFIG CKPT PROCESSES [options of tools/generate.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/torchrun.sh" "$processes" "$here/generate.py" "$config" "$checkpoint" --launcher pytorch "$@"
