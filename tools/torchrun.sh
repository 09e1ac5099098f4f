#!/usr/bin/env bash
# torchrun as dist_train.sh and dist_test.sh need it: tools/torchrun.sh PROCESSES SCRIPT [arguments]; see torchrun.py.
set -euo pipefail
processes=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$root/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python
fi
if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of processes is '$processes', wanted a positive integer" >&2
    exit 2
fi
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    # More threads than cores makes CPU processes wait for each other.
    OMP_NUM_THREADS=$(($(getconf _NPROCESSORS_ONLN) / processes))
    export OMP_NUM_THREADS=$((OMP_NUM_THREADS > 0 ? OMP_NUM_THREADS : 1))
fi
exec "$PYTHON" "$root/tools/torchrun.py" "$@"
