#!/usr/bin/env bash
# One training run as a SLURM job: the arguments are those of python -m pspo.train. No settings here.
#
#   python experiments/submit.py train surrogate=pspo seed=1 slurm.time=2:00:00     asks for what conf/slurm says
#   sbatch --gpus-per-task=1 --ntasks=1 --signal=USR1@300 slurm/train.sh scale=paper surrogate=pspo seed=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
source "${PSPO_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh"
attempt run "$@"
