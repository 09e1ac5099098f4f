#!/usr/bin/env bash
# ViT-L on ADE20K: 4 learning rates x 4 layer decays, one run after the other; nobody published the two.
# Run from the repository root: seg_configs/sweep_large.sh [GPUS] [arguments of tools/train.py ...]
# A run that was cut goes on where it was. DRY_RUN=1 prints the commands instead.
set -euo pipefail

gpus=${1:-8}
for lr in 2e-5 4e-5 8e-5 1e-4; do
    for decay in 0.8 0.85 0.9 0.95; do
        command=(tools/dist_train.sh seg_configs/addp_large_upernet.py "$gpus" "${@:2}" --resume
            --work-dir "work_dirs/sweep_large/lr_${lr}_decay_${decay}"
            --cfg-options "optim_wrapper.optimizer.lr=$lr" "optim_wrapper.paramwise_cfg.decay_rate=$decay")
        if [[ -n ${DRY_RUN:-} ]]; then
            echo "${command[*]}"
        else
            "${command[@]}"
        fi
    done
done
