"""Who may import whom (docs/architecture.md), and what the light rooms must do without."""

import ast
import subprocess
import sys

import pytest

# Lower rooms first: a module imports from its own line and those above it.
LAYERS = [
    {"errors", "seeds", "types", "metrics", "provenance", "intervals", "files", "memory", "stopping"},
    {"config"},
    {"rundir"},
    {"surrogates", "advantages", "logprobs", "grading", "muon", "attention", "layers", "ranks", "trainstate"},
    {"data", "scores"},
    {"objective", "rewards", "batching", "models", "adapters", "sharding", "offload", "plan"},
    {"checkpoint", "learner", "measures", "rollout", "tracking"},
    {"evaluation"},
    {"evalfile"},
    {"startup", "doctor", "fetch"},
    {"exams", "sampling"},
    {"run", "sft"},
    {"train"},
]
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def rooms_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "pspo" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("pspo."))


def modules(root):
    return [
        path
        for path in sorted((root / "src/pspo").rglob("*.py"))
        if path.parent.name != "pspo" or path.stem != "__init__"
    ]


def test_dependencies_point_one_way(root):
    for path in modules(root):
        room = path.relative_to(root / "src/pspo").parts[0].removesuffix(".py")
        for other in rooms_imported(path):
            assert RANK[other] < RANK[room] or other == room, f"{path.relative_to(root)} imports pspo.{other}"


def test_only_one_module_imports_vllm_and_only_one_hydra(root):
    def importers(package):
        return [p.relative_to(root / "src/pspo").as_posix() for p in modules(root) if imports(p, package)]

    def imports(path, package):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        return any(name.split(".")[0] == package for name in names)

    assert importers("vllm") == ["rollout/vllm.py"]
    assert importers("hydra") == ["config/compose.py"]


@pytest.mark.parametrize(
    "module",
    [
        "pspo",
        "pspo.config",
        "pspo.data",
        "pspo.grading",
        "pspo.metrics",
        "pspo.seeds",
        "pspo.types",
        "pspo.train",
        "pspo.rundir",
        "pspo.plan.forecast",
    ],
)
def test_light_rooms_need_no_heavy_package(module, root):
    code = (
        f"import {module}, sys; heavy = {{'torch', 'vllm', 'transformers', 'wandb', 'sympy'}} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
