#!/usr/bin/env bash
# Installs what the tests of the report need, which look at it in a browser. Called by `make test`; how, and what happens
# where it may not: scripts/apt.sh.
set -euo pipefail
source "$(dirname "$0")/apt.sh"

name=browser why="the tests that look at the report are skipped"
packages=(chromium chromium-driver)
programs=(chromium chromedriver)

if have "${programs[@]}"; then exit 0; fi
may_install
install_with_apt
