#!/usr/bin/env bash
# Installs what the tests of a cluster need (slurm-wlm, munge). Called by `make test`; how, and what happens where it may
# not: scripts/apt.sh. Nothing of an existing cluster is touched.
set -euo pipefail
source "$(dirname "$0")/apt.sh"

name=slurm why="tests/slurm is skipped"
packages=(slurm-wlm slurm-client munge) # with slurm-wlm come slurmctld and slurmd
programs=(munged slurmctld slurmd sbatch srun scontrol squeue sinfo sdiag scancel) # those that tests/programs/daemons.py uses

if have "${programs[@]}"; then exit 0; fi
may_install
if have sbatch; then leave "this machine belongs to a cluster already ($(command -v sbatch))"; fi
install_with_apt
