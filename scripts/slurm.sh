#!/usr/bin/env bash
# Installs what the tests of a cluster need (slurm-wlm, munge), by apt, as root. Called by `make test`; silent and instant
# when there is nothing to do.
#
# Where it may not install, it says why in one line and ends with 0: the tests then skip. It ends with 1 only where an
# install that should have worked did not. No service is started, and nothing of an existing cluster is touched.
set -euo pipefail

packages=(slurm-wlm slurm-client munge) # with slurm-wlm come slurmctld and slurmd
programs=(munged slurmctld slurmd sbatch srun scontrol squeue sinfo sdiag scancel) # those that tests/programs/daemons.py uses

say() { printf 'slurm: %s\n' "$*" >&2; }
leave() {
    say "not installed, so tests/slurm is skipped: $*"
    exit 0
}
have() { # PROGRAM...: all of them; sbin is not on everybody's path
    local program
    for program; do PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || return 1; done
}

if have "${programs[@]}"; then exit 0; fi
if [[ $(uname -s) != Linux ]] || ! have apt-get dpkg; then leave "no apt here"; fi
if ((EUID != 0)); then leave "only root may install (sudo scripts/slurm.sh)"; fi
if have sbatch; then leave "this machine belongs to a cluster already ($(command -v sbatch))"; fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d # asked by the packages before they start their services
ours=no
finish() {
    rm -f "$log"
    if [[ $ours == yes ]]; then rm -f "$policy"; fi
}
trap finish EXIT
if [[ ! -e $policy ]]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy" # "not allowed"
    chmod +x "$policy"
fi

quiet_apt() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@" >>"$log" 2>&1 </dev/null
}
install() { quiet_apt install -y --no-install-recommends "${packages[@]}"; }

SECONDS=0
# The lists that are there are tried first: a new fetch takes longer than the install, and some mirrors of it are down.
# One that fails is no reason to stop: the packages may be in the others.
if ! install; then
    quiet_apt update || true
    if ! install; then
        tail -20 "$log" >&2
        say "apt could not install ${packages[*]} (above)"
        exit 1
    fi
fi
have "${programs[@]}" || { say "apt installed ${packages[*]}, and not all programs are there"; exit 1; }
say "installed ${packages[*]} in $SECONDS s"
