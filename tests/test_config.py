"""Every file under conf/ composes, and a wrong setting is one readable line before anything heavy is imported."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from pspo.config import (
    EvalConfig,
    FetchConfig,
    PlanConfig,
    SftConfig,
    StudyConfig,
    TrainConfig,
    compose,
    compose_each,
    load_yaml,
    run_dir_of,
    to_yaml,
)
from pspo.config.compose import CONF, cells, one_line_errors
from pspo.errors import ConfigError, PspoError

PROGRAMS = {
    "train": TrainConfig,
    "sft": SftConfig,
    "eval": EvalConfig,
    "study": StudyConfig,
    "plan": PlanConfig,
    "fetch": FetchConfig,
}
# conf/study/ is no group but the root of the study program, whose settings share names with groups.
GROUPS: dict[str, list[str]] = {p.parent.name: [] for p in CONF.glob("*/*.yaml") if p.parent.name != "study"}
for path in CONF.glob("*/*.yaml"):
    GROUPS.get(path.parent.name, []).append(path.stem)

# What a choice cannot do without: the rest of a combination that makes sense.
BESIDE = {
    "experiment=custom": ["steps=3"],
    "sampling=released": ["scale=paper"],
    "sampling=boxed": ["scale=paper"],
    "gpu=cpu": ["scale=cpu"],
    **{f"data={name}": ["model=qwen2_5_0_5b"] for name in GROUPS["data"] if name != "wordproblems"},
}
TEST_ONLY = ["data=asdiv", "data=math500"]
CHOICES = [f"{group}={name}" for group, names in GROUPS.items() for name in names if group != "benchmark"]


@pytest.mark.parametrize("choice", TEST_ONLY)
def test_data_without_a_training_part_is_not_trained_on(choice):
    with pytest.raises(ConfigError, match=r"data=.*has no training part"):
        compose("train", TrainConfig, [choice, *BESIDE[choice]])


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice not in TEST_ONLY])
def test_every_file_of_every_group_composes(choice):
    group, _, name = choice.partition("=")
    program = "plan" if group == "gpu" else "train"
    cfg = compose(program, PROGRAMS[program], [choice, *BESIDE.get(choice, [])])
    if group in ("surrogate", "model", "data", "prompt", "gpu"):
        assert getattr(cfg, group).name == name


@pytest.mark.parametrize("name", GROUPS["benchmark"])
def test_every_benchmark_composes(name):
    cfg = compose("eval", EvalConfig, ["checkpoint=somewhere", f"benchmark={name}"])
    assert cfg.benchmark == cfg.data.name == name


def test_every_top_file_belongs_to_a_program_or_is_shared():
    tops = [*CONF.glob("*.yaml"), *CONF.glob("study/*.yaml")]
    launchers = list(CONF.glob("hydra/launcher/*.yaml"))  # tests/test_sweeps.py
    assert {path.stem for path in tops} == {*PROGRAMS, "quiet"}
    every = len(tops) + len(launchers) + sum(map(len, GROUPS.values()))
    assert len(list(CONF.rglob("*.yaml"))) == every  # nothing is left out
    for name, schema in PROGRAMS.items():
        compose(name, schema, {"eval": ["checkpoint=x"], "fetch": ["to=x"]}.get(name, []))


@pytest.mark.parametrize("model", ["qwen2_math_1_5b", "qwen2_5_0_5b", "qwen2_5_1_5b"])
@pytest.mark.parametrize("surrogate", GROUPS["surrogate"])
def test_paper_scale_composes_and_validates(model, surrogate):
    cfg = compose("train", TrainConfig, ["scale=paper", f"model={model}", f"surrogate={surrogate}"])
    assert (cfg.device, cfg.model.dtype, cfg.scale) == ("cuda", "bfloat16", "paper")
    assert cfg.rollout.sequences == 64 and cfg.learner.passes == 2


def test_a_regime_wins_over_groups_and_the_command_line_over_all():
    assert compose("train", TrainConfig, ["experiment=stress"]).learner.passes == 2
    assert compose("train", TrainConfig, ["experiment=stress", "learner.passes=3"]).learner.passes == 3
    assert compose("train", TrainConfig, ["scale=paper", "model=qwen2_5_0_5b"]).model.name == "qwen2_5_0_5b"


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["surrogate.alpha=1.5"], "surrogate.alpha=1.5: "),
        (["surrogate.alpha=-0.1"], "surrogate.alpha=-0.1: "),
        (["surrogate.alpha=abc"], "surrogate.alpha=abc: "),
        (
            ["surrogate=clip", "surrogate.alpha=0.1"],
            "surrogate.alpha=0.1: there is no such setting under surrogate=clip",
        ),
        (["surrogate=clop"], "surrogate=clop: must be one of clip, no_clip, pspo, sigmoid"),
        (["learner.lrr=1"], "learner.lrr=1: there is no such setting"),
        (["modle.dtype=float32"], "modle.dtype=float32: there is no such setting"),
        (["+surrogate.beta=2"], "surrogate.beta=2: there is no such setting"),
        (["steps=0"], "steps=0: "),
        (["run_dir='\\${nope}'"], "run_dir=${nope}: must not hold ${"),
        (["slurm.time=5"], "slurm.warn_s=300: must be less than slurm.time=5"),
        (["slurm.time=banana"], "slurm.time=banana: must be a limit"),
        (["steps=2.5"], "steps=2.5: "),
        (["seed=-1"], "seed=-1: "),
        (["learner.lr=nan"], "learner.lr=nan: "),
        (["learner.minibatches=3"], "learner.minibatches=3: must divide"),
        (["learner.betas=[0.9]"], "learner.betas"),
        (["rollout.top_p=0.9"], "rollout.top_p=0.9: must be 1.0"),
        (["rollout.group_size=1"], "rollout.group_size=1: "),
        (["data.levels=[2,9]"], "data.levels.1=9: "),
        (["data=gsm8k"], "model.path="),
        (["model.attention=varlen"], "model.attention=varlen: needs model.dtype=bfloat16"),
        (
            ["learner.minibatches=32"],
            "learner.minibatches=32: must divide rollout.prompts=16 where",
        ),
        (["learner.correction_cap=0.5"], "learner.correction_cap=0.5"),
        (["learner.correction=token"], "learner.correction=token: needs learner.old_log_probs=learner"),
        (
            ["surrogate=clip", "surrogate.dual=1.1"],
            "surrogate.dual=1.1: must be above 1 + surrogate.epsilon_high = 1.2",
        ),
        (["learner.token_budget=10"], "learner.token_budget=10: "),
        (["surrogate.alpha"], "command line=surrogate.alpha: "),
        (["experiment=custom"], "steps=???: has no value"),
        (["experiment=null"], "command line=experiment=null: "),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(overrides, expected):
    with pytest.raises(ConfigError) as caught:
        compose("train", TrainConfig, overrides)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("program", ["-m pspo.train", "-m pspo.sft", "eval/evaluate.py", "experiments/reproduce.py"])
def test_a_program_ends_with_one_line_and_no_heavy_import(program, root, tmp_path):
    """`python -X importtime` lists what was imported."""
    command = [sys.executable, "-X", "importtime", *program.split(), "no_such.setting=1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert lines == ["pspo: wrong setting: no_such.setting=1: there is no such setting"]
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pspo.config.schema" in imported
    assert not imported & {"torch", "vllm", "transformers", "wandb", "matplotlib"}
    assert done.stdout == ""


def test_a_sweep_is_checked_whole_before_its_first_run(root):
    """The third cell is wrong: nothing runs, nothing heavy is imported."""
    command = [sys.executable, "-m", "pspo.train", "-m", "surrogate=pspo", "surrogate.alpha=0.05,0.1,1.2", "seed=0,1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("pspo: wrong setting: surrogate.alpha=1.2: ") and done.stderr.count("\n") == 1


def test_full_error_on_demand(root):
    env = os.environ | {"HYDRA_FULL_ERROR": "1"}
    command = [sys.executable, "-m", "pspo.train", "steps=0"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode != 0 and "Traceback" in done.stderr and "steps=0" in done.stderr


def test_cells_of_a_command_line():
    assert cells(["seed=3", "steps=2"]) == [["seed=3", "steps=2"]]
    swept = cells(["-m", "surrogate=pspo", "surrogate.alpha=0.05,0.1", "seed=range(2)"])
    assert swept == [["surrogate=pspo", f"surrogate.alpha={a}", f"seed={s}"] for a in (0.05, 0.1) for s in (0, 1)]


def test_a_config_survives_its_file(tmp_path):
    for overrides in ([], ["surrogate=sigmoid", "experiment=stress"], ["scale=paper"]):
        cfg = compose("train", TrainConfig, overrides)
        (tmp_path / "config.yaml").write_text(to_yaml(cfg))
        assert load_yaml(tmp_path / "config.yaml", TrainConfig) == cfg


def test_run_id_is_what_determines_the_result_and_nothing_else():
    base = compose("train", TrainConfig)
    same = replace(base, tracking=replace(base.tracking, wandb="offline"), models="elsewhere")
    assert run_dir_of(base) == run_dir_of(same)
    others = [
        ["seed=1"],
        ["surrogate.alpha=0.2"],
        ["learner.lr=1e-5"],
        ["data.seed=1"],
        ["sft.steps=5"],
        ["rollout=hf"],
    ]
    ids = {run_dir_of(compose("train", TrainConfig, overrides)) for overrides in [[], *others]}
    assert len(ids) == 1 + len(others)
    assert run_dir_of(replace(base, run_dir="here")).as_posix() == "here"


SOURCE = re.compile(
    r"\((paper|released code|library default|our choice|data set|SAPO|Qwen2.5-Math scripts|math-evaluation-harness"
    r"|data sheet|measured|assumed)\b"
)
# What a file is, rather than a value somebody chose.
NAMES = {"defaults", "name", "kind", "engine", "scale", "regime", "benchmark", "wandb"}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_value_has_its_source(path):
    """A value says in its line, or in the comment above it, where it comes from; or the file's head says it for all."""
    lines = path.read_text().splitlines()
    head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    if SOURCE.search(" ".join(head)):
        return
    above, covered = "", None  # `covered`: indent of a block whose own line has a source
    for line in lines:
        if line.lstrip().startswith("#"):
            above += line
            continue
        if found := re.match(r"( *)(\w+):(.*)", line):
            indent, key, value = len(found[1]), found[2], found[3].partition("#")[0].strip()
            covered = covered if covered is not None and indent > covered else None
            if SOURCE.search(above + line):
                covered = indent if not value else covered
            else:
                assert covered is not None or key in NAMES or not value, f"{path.name}: {key} has no source"
        above = ""


def test_an_error_is_one_line_whatever_a_name_holds(capsys):
    """Any line break would begin a line, which could look like the cluster's (experiments/jobs/verdicts.py)."""
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise PspoError("a\nb\u2028srun: error: Node failure\rc\x85d\x0ce")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "pspo: a b srun: error: Node failure c d e\n"


def test_many_cells_are_composed_as_each_alone(root):
    """Of every study, at each scale: groups, values, lists, null, and what only another group has."""
    for path in sorted((root / "experiments/studies").glob("*.yaml")):
        study = yaml.safe_load(path.read_text())
        for scale, of_scale in study["scales"].items():
            arms, regimes = list(study["arms"].values()), list(of_scale["regimes"].values())
            [[model, *_], [data, *_]] = of_scale["models"].values(), of_scale["data"].values()
            every = of_scale.get("overrides", [])
            cells = [[f"scale={scale}", *model, *data, *regimes[-1], *arm, *every] for arm in (arms[0], arms[-1])]
            assert compose_each("train", TrainConfig, cells) == [compose("train", TrainConfig, cell) for cell in cells]
    odd = [["prompt.stop=[a,'b c']", "learner.max_grad_norm=null"], ["+reward=random"], ["~tracking.tags"]]
    for cell in odd:
        assert outcome(lambda cell=cell: compose_each("train", TrainConfig, [cell])[0]) == outcome(
            lambda cell=cell: compose("train", TrainConfig, cell)
        )


WRONG = ["learner.lr=fast", "learner.lrr=1", "surrogate=klip", "steps", "seed=-1", "a b=c", "experiment=custom"]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_cell_among_many_is_told_as_for_one(wrong):
    told = outcome(lambda: compose("train", TrainConfig, [wrong]))
    assert isinstance(told, str) and outcome(lambda: compose_each("train", TrainConfig, [[], [wrong]])) == told


def outcome(make):
    try:
        return make()
    except ConfigError as error:
        return str(error)


def test_settings_that_came_later_leave_the_names_of_runs_at_what_they_did_before():
    """A field of the schema with a default: its value in conf/ is that default, and no part of a run's identity."""
    cfg = compose("train", TrainConfig, [])
    later = {
        "model.compile": cfg.model.compile,
        "learner.offload_optimizer": cfg.learner.offload_optimizer,
        "rollout.ahead": cfg.rollout.ahead,
        "rollout.vllm.sleep": cfg.rollout.vllm.sleep,
    }
    assert not any(later.values())
    assert run_dir_of(cfg).name == "pspo-gentle-s0-a868efe0c9"  # the name it had before there were any of them
    changed = {run_dir_of(compose("train", TrainConfig, [f"{name}=true"])) for name in later}
    assert len(changed | {run_dir_of(cfg)}) == len(later) + 1


def test_a_config_written_before_a_setting_was_there_is_read(tmp_path):
    cfg = compose("train", TrainConfig, [])
    text = to_yaml(cfg)
    for name in ("compile", "offload_optimizer", "ahead", "sleep", "tensor_parallel"):
        text, count = re.subn(rf"(?m)^ *{name}: .*\n", "", text)
        assert count == 1, name
    (tmp_path / "config.yaml").write_text(text)
    assert load_yaml(tmp_path / "config.yaml", TrainConfig) == cfg
