#!/usr/bin/env bash
# A part of a study as a SLURM job; experiments/reproduce.py launcher=slurm submits them all, in order. No settings here:
# what to run is in the arguments, what to run it on in sbatch's.
#
#   sbatch slurm/study.sh start study=main scale=paper                  what the runs start from
#   sbatch --array=0-23 slurm/study.sh train study=main scale=cpu       a run a task: the array index names the cell
#   sbatch --array=0-23 slurm/study.sh evaluate study=main scale=cpu    the study's benchmarks, a run a task
#   sbatch slurm/study.sh report study=main scale=cpu                   audit, tables, figures and report
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
source "${PSPO_HOME:-${SLURM_SUBMIT_DIR:-.}}/slurm/job.sh"

stage=${1:?start, train, evaluate or report}
shift
if [[ -n ${SLURM_ARRAY_TASK_ID-} ]]; then
    set -- "$@" "cell=$SLURM_ARRAY_TASK_ID"
fi
attempt "$stage" "$@"
