#!/usr/bin/env bash
# A study, or a part of it, as a SLURM job. No settings here: what to run is in the arguments, what to run it on in sbatch's.
#
#   sbatch slurm/study.sh study=main scale=paper              the whole study, on the node that the job gets
#   sbatch --array=0-23 slurm/study.sh study=main scale=cpu   one run a task: the array index names the cell
#   sbatch slurm/study.sh report study=main scale=cpu         audit, tables, figures and report from what has been run
#
# experiments/reproduce.py launcher=slurm submits all three in order.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

program=experiments/reproduce.py
if [[ ${1-} == report ]]; then
    program=experiments/report.py
    shift
    "${PYTHON:-.venv/bin/python}" experiments/audit.py "$@" || echo "no audit of the grader; the report goes on" >&2
fi
if [[ -n ${SLURM_ARRAY_TASK_ID-} ]]; then
    set -- "$@" "cell=$SLURM_ARRAY_TASK_ID"
fi
exec "${PYTHON:-.venv/bin/python}" "$program" "$@"
