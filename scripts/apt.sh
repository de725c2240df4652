# Sourced: installs Debian packages that tests need, by apt, as root; silent and instant when there is nothing to do.
#
#   name, why           what the messages call it, and what is skipped without it
#   packages, programs  what is installed, and what has to be there afterwards
#   install_with_apt    does it. Where it may not install, it says why in one line and returns 0: the tests then skip. It
#                       returns 1 only where an install that should have worked did not. No service is started.

say() { printf '%s: %s\n' "$name" "$*" >&2; }
leave() {
    say "not installed, so $why: $*"
    exit 0
}
have() { # PROGRAM...: all of them; sbin is not on everybody's path
    local program
    for program; do PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || return 1; done
}

quiet_apt() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@" >>"$log" 2>&1 </dev/null
}
quiet_install() { quiet_apt install -y --no-install-recommends "${packages[@]}"; }

may_install() { # ends the script where it may not
    if [[ $(uname -s) != Linux ]] || ! have apt-get dpkg; then leave "no apt here"; fi
    if ((EUID != 0)); then leave "only root may install (sudo scripts/$name.sh)"; fi
}

install_with_apt() {
    log=$(mktemp)
    local policy=/usr/sbin/policy-rc.d # asked by the packages before they start their services
    undo="rm -f '$log'"
    if [[ ! -e $policy ]]; then
        undo+=" '$policy'"
        printf '#!/bin/sh\nexit 101\n' >"$policy" # "not allowed"
        chmod +x "$policy"
    fi
    trap "$undo" EXIT
    SECONDS=0
    # The lists that are there are tried first: a new fetch takes longer than the install, and some mirrors of it are
    # down. One that fails is no reason to stop: the packages may be in the others.
    if ! quiet_install; then
        quiet_apt update || true
        if ! quiet_install; then
            tail -20 "$log" >&2
            say "apt could not install ${packages[*]} (above)"
            return 1
        fi
    fi
    have "${programs[@]}" || { say "apt installed ${packages[*]}, and not all programs are there"; return 1; }
    say "installed ${packages[*]} in $SECONDS s"
}
