#!/usr/bin/env bash
# Trains under Slurm, one process a GPU: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# Environment: GPUS (8), GPUS_PER_NODE (8; 0 = CPU processes), CPUS_PER_TASK (5), SRUN_ARGS (more options of srun),
# MASTER_ADDR and PORT (the first node, 29500).
set -euo pipefail
if [[ $# -lt 3 ]]; then
    echo "usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$here/../.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python
fi
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
if [[ $per_node -gt $gpus ]]; then
    per_node=$gpus
fi
resources=(--ntasks="$gpus" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1)
if [[ $per_node -gt 0 ]]; then
    resources+=(--gres="gpu:$per_node" --ntasks-per-node="$per_node")
fi
if [[ -n ${PORT:-} ]]; then
    export MASTER_PORT=$PORT
fi
# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
exec srun -p "$partition" --job-name="$job" "${resources[@]}" ${SRUN_ARGS:-} \
    "$PYTHON" -u "$here/train.py" "$config" --launcher slurm "$@"
