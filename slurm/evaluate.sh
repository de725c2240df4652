#!/usr/bin/env bash
# One evaluation as a SLURM job: the arguments are those of eval/evaluate.py. No settings here. Sent back to the queue it
# goes on from the last chunk of problems.
#
#   python experiments/submit.py evaluate checkpoint=runs/<a run> benchmark=gsm8k
#   sbatch --gpus-per-task=1 --ntasks=1 --signal=USR1@300 slurm/evaluate.sh checkpoint=runs/<a run> benchmark=gsm8k
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
source "${PSPO_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh"
attempt evaluation "$@"
