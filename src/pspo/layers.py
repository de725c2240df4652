"""The layers of a policy: which of its modules they are, and torch.compile for them (`model.compile`).

All layers are the same code, so what is compiled for one serves all, for packs of any length; attention, whose blocks
differ from pack to pack, is left out of it (pspo.attention). Norms, rotary embedding, activation and residuals become a
few kernels instead of one an operator. Imports: torch, transformers for the model's type.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from pspo.errors import ConfigError

BACKEND = "inductor"
"""Of torch.compile: C++ on a CPU, Triton on CUDA."""


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """In the order in which the model names them."""
    kinds = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def compile_layers(model: PreTrainedModel, backend: str = BACKEND) -> None:
    """Has the layers compiled when they are first called, in place. To be called before sharding.

    It is a layer's `forward` that is compiled: hooks, which gather and free its shards, and gradient checkpointing stay
    outside, and its parameters keep their names.
    """
    for layer in layers_of(model):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)


def check_compiler(device: str) -> None:
    """Raises ConfigError where this machine has nothing to compile with, which else the first batch would tell."""
    if missing := _missing(device):
        raise ConfigError("model.compile", True, f"needs {missing}; install it, or take model.compile=false")


def _missing(device: str) -> str:
    """What there is not to compile with for a device; "" where all is there."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton, which torch's CUDA builds bring"
    if not (_has_c_compiler() if device == "cuda" else _has_cpp_compiler()):
        return "a C compiler (gcc, clang, or CC)" if device == "cuda" else "a C++ compiler (g++, or CXX)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return f"Python's headers, {sysconfig.get_path('include')}/Python.h (python3-dev)"
    return ""


def _has_c_compiler() -> bool:
    """Triton's search for one."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def _has_cpp_compiler() -> bool:
    """torch's search for one, which calls it."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
