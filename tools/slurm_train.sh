#!/usr/bin/env bash
# Trains under Slurm, one process a GPU: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# Environment: GPUS (8), GPUS_PER_NODE (8; 0 = CPU processes), CPUS_PER_TASK (5), SRUN_ARGS (more options of srun),
# MASTER_ADDR and PORT (the first node, 29500), SIGNAL_SECONDS (300: how long before its time limit Slurm sends the
# signal to save), MAX_REQUEUES (100).
# A run that was preempted, or reached its time limit, has saved and exits with 85: it is started again and resumes.
# Within a batch job (sbatch --requeue) the job is requeued; otherwise this script waits and asks for another
# allocation. See docs/faults.md.
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
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    resources=(-p "$partition" --job-name="$job" --signal="USR1@${SIGNAL_SECONDS:-300}" "${resources[@]}")
    export ADDP_LAUNCH_ID=slurm_train.$(hostname).$$ # all attempts are one run: the work dir stays theirs
fi
if [[ -n ${PORT:-} ]]; then
    export MASTER_PORT=$PORT
fi
resume=()
for ((attempt = 0; attempt <= ${MAX_REQUEUES:-100}; attempt++)); do
    if [[ $attempt -gt 0 || ${SLURM_RESTART_COUNT:-0} -gt 0 ]]; then
        resume=(--resume)
    fi
    code=0
    # SRUN_ARGS holds several words on purpose.
    # shellcheck disable=SC2086
    srun "${resources[@]}" ${SRUN_ARGS:-} \
        "$PYTHON" -u "$here/train.py" "$config" --launcher slurm "$@" ${resume[@]+"${resume[@]}"} || code=$?
    if [[ $code -ne 85 ]]; then
        exit "$code"
    fi
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        echo "the run has saved; requeueing job $SLURM_JOB_ID" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit 85
    fi
    echo "the run has saved; asking for another allocation (attempt $((attempt + 2)))" >&2
done
echo "error: preempted ${MAX_REQUEUES:-100} times and more; MAX_REQUEUES allows no further attempt" >&2
exit 85
