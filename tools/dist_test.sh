#!/usr/bin/env bash
# Evaluates with several processes: tools/dist_test.sh CONFIG CKPT PROCESSES [options of tools/test.py]
# See tools/dist_train.sh for several machines.
set -euo pipefail
if [[ $# -lt 3 ]]; then
    echo "usage: tools/dist_test.sh CONFIG CKPT PROCESSES [options of tools/test.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/torchrun.sh" "$processes" "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
