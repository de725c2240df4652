#!/usr/bin/env bash
# One training run as a SLURM job: the arguments are those of python -m pspo.train. No settings here.
#
#   sbatch --gpus=1 slurm/train.sh scale=paper surrogate=pspo seed=1
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
exec srun "${PYTHON:-.venv/bin/python}" -m pspo.train "$@"
