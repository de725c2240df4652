"""From `conf/` and a command line to the dataclasses of `programs.py`; the only module that knows Hydra.

    @program("train", TrainConfig)
    def train(cfg: TrainConfig) -> None: ...

`program` checks the whole command line first, every cell of a `-m` sweep and its launcher included, and ends with one
line and exit status 2 where a setting is wrong; then it hands over to Hydra.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

from pspo.config import sweeps
from pspo.config.programs import SftConfig, TrainConfig
from pspo.errors import ConfigError, PspoError
from pspo.stopping import ending, stoppable

C = TypeVar("C")

# Hydra merges conf/hydra/launcher/joblib.yaml into the launcher's own settings of that name, as is meant, and warns.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/joblib' is validated against ConfigStore schema")

CONF = Path(__file__).resolve().parents[3] / "conf"

# What does not change a run's numbers, and so is not part of its identity.
NOT_IN_RUN_ID = ("run_dir", "runs", "models", "tracking", "saving", "slurm", "rank_timeout")


def compose(name: str, schema: type[C], overrides: Sequence[str] = ()) -> C:
    """The config `conf/<name>.yaml` with command-line style overrides, checked.

    Raises ConfigError with one line naming setting, value and what is allowed.
    """
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(_root(name)), version_base="1.3"):
            return checked(hydra.compose(name, overrides=list(overrides)), schema)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _readable(error, overrides) from error


def compose_each(name: str, schema: type[C], cells: Iterable[Sequence[str]]) -> list[C]:
    """`compose` of each list of overrides, faster: what they choose of groups is composed once, and values are set on a
    copy, as Hydra does it."""
    bases: dict[tuple[str, ...], DictConfig] = {}

    def one(overrides: Sequence[str]) -> C:
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            grouped = tuple(str(o.input_line) for o in parsed if (CONF / o.key_or_group).is_dir())
            values = [o for o in parsed if not (CONF / o.key_or_group).is_dir()]
            if any(o.type != OverrideType.CHANGE or o.is_sweep_override() for o in values):
                return compose(name, schema, overrides)
            if grouped not in bases:
                GlobalHydra.instance().clear()
                with hydra.initialize_config_dir(config_dir=str(_root(name)), version_base="1.3"):
                    bases[grouped] = hydra.compose(name, overrides=list(grouped))
            cfg = copy.deepcopy(bases[grouped])
            for o in values:
                OmegaConf.update(cfg, o.key_or_group, o.value(), merge=True)
            return checked(cfg, schema)
        except (HydraException, OmegaConfBaseException, ValueError):
            return compose(name, schema, overrides)  # which says what is wrong

    return [one(overrides) for overrides in cells]


def choices(name: str, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Group -> the file of it that `compose` takes, such as model -> tiny; groups of Hydra's own are left out."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(_root(name)), version_base="1.3"):
        found = hydra.compose(name, overrides=list(overrides), return_hydra_config=True).hydra.runtime.choices
    return {str(group): str(choice) for group, choice in found.items() if "/" not in str(group)}


def checked(cfg: DictConfig, schema: type[C]) -> C:
    """A composed config as an instance of `schema`; raises ConfigError for the first thing that is wrong."""
    values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    _refuse_references(values, "")
    try:
        found: C = _adapter(schema).validate_python(values)  # type: ignore[arg-type]  # mypy doubts that a class has a hash
        return found
    except ValidationError as error:
        raise _first(error, values) from error


@functools.cache
def _adapter(schema: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(schema)  # 30 ms, and a study has hundreds of configs


def _refuse_references(values: Any, place: str) -> None:
    """A text with ${ would be taken for a reference when the written config is read again."""
    if isinstance(values, str) and "${" in values:
        raise ConfigError(place, values, "must not hold ${")
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inside:
        _refuse_references(value, f"{place}.{key}".removeprefix("."))


def to_yaml(cfg: Any) -> str:
    """A config dataclass as YAML; `checked` of it gives the same config back."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(asdict(cfg))))


def load_yaml(path: str | Path, schema: type[C], other: str = "", apart: Sequence[str] = ()) -> C:
    """A config written by `to_yaml`, with the settings `apart` those of the YAML text `other`.

    Raises ConfigError if it does not fit the schema, OSError if it is not there.
    """
    try:
        cfg = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "(not YAML)", " ".join(str(error).split())) from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(str(path), type(cfg).__name__, "must be a mapping")
    if apart:
        cfg.update({name: value for name, value in OmegaConf.create(other).items() if name in apart})
    try:
        return checked(cfg, schema)
    except OmegaConfBaseException as error:  # ??? and ${...}, which mean something to it
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(str(getattr(error, "full_key", None) or path), "(not a value)", reason) from error


def config_hash(cfg: Any, leave_out: Sequence[str] = ()) -> str:
    """Ten hex digits of what a config dataclass says, without the named fields, and those that have a default and are
    at it (`pspo.config.schema`)."""
    values = {key: value for key, value in _said(cfg).items() if key not in leave_out}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def run_dir_of(cfg: TrainConfig) -> Path:
    """Where a training run lives: `run_dir`, or a readable name with the hash of all that determines its result."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    return (
        Path(cfg.runs) / f"{cfg.surrogate.name}-{cfg.regime or 'custom'}-s{cfg.seed}-{config_hash(cfg, NOT_IN_RUN_ID)}"
    )


def warm_start_dir(cfg: TrainConfig | SftConfig) -> Path:
    """Where the warm start of a model made here lives: its name and a hash of the settings it follows from."""
    data = {key: value for key, value in _said(cfg.data).items() if key not in ("train", "validation", "test")}
    made_of = [_said(cfg.model.arch), _said(cfg.sft), data, _said(cfg.prompt)]
    return Path(cfg.models) / f"{cfg.model.name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:10]}"


Swept = Literal["runs", "answers", "never"]
"""What the cells of a program's sweep are: runs, which a launcher may start anywhere, and which are gone on with;
answers, printed here one after the other; or it takes no -m."""


def program(
    name: str, schema: type[C], cells_are: Swept = "runs"
) -> Callable[[Callable[[C], None]], Callable[[], None]]:
    """Turns `run(cfg)` into a program with Hydra's command line over `conf/<name>.yaml`. A sweep of answers ends with
    the highest of their exit statuses."""

    def decorate(run: Callable[[C], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def entry() -> None:
            if {"-m", "--multirun"} & set(sys.argv[1:]):
                launch()
                return
            with ending(), stoppable():  # from here on; a program that has something to save listens itself
                launch()

        def launch() -> None:
            full = bool(os.environ.get("HYDRA_FULL_ERROR"))
            with one_line_errors():
                swept = swept_by(sys.argv[1:])
                if swept is not None and cells_are == "never":
                    raise ConfigError("command line", "-m", "this program has no sweeps: start it once for each value")
                asked = cells(sys.argv[1:])
                composed = [compose(name, schema, overrides) for overrides in asked]
                trained = [cfg for cfg in composed if isinstance(cfg, TrainConfig) and cells_are == "runs"]
                places = [run_dir_of(cfg) for cfg in trained]
                if len(set(places)) < len(places):
                    allowed = "the cells of a sweep need directories of their own: leave run_dir out"
                    raise ConfigError("run_dir", places[0], allowed)
                if swept is not None and cells_are == "answers":
                    refuse_launchers(asked[0])
                launcher = "" if swept is None else prepare_launcher(name, asked[0])
            parent, statuses = os.getpid(), [0]

            def task(cfg: DictConfig) -> None:  # what a launcher takes to another process, by value
                if swept is None:
                    with one_line_errors():
                        run(checked(cfg, schema))
                elif cells_are == "answers":
                    print("\n" * (len(statuses) > 1) + f"== {name_of_cell(swept)}", flush=True)
                    statuses.append(sweeps.one_answer(name_of_cell(swept), lambda: run(checked(cfg, schema)), full))
                else:
                    with sweeps.beside(parent) if launcher == "JoblibLauncher" else nullcontext():
                        sweeps.one_cell(name_of_cell(swept), lambda: run(checked(cfg, schema)), full)

            bound_spinning()
            GlobalHydra.instance().clear()
            with_hydra = hydra.main(config_path=str(_root(name)), config_name=name, version_base="1.3")(task)
            if swept is None:
                with_hydra()
            else:
                with sweeps.what_is_left(places, launcher), one_line_errors(), sweeps.launched():
                    with_hydra()
                if any(statuses):
                    sys.exit(max(statuses))

        return entry

    return decorate


class one_line_errors:
    """Ends the program on what a user can mend with one line: status 2 for a wrong setting, 1 for other errors of ours
    and of the file system, 130 for Ctrl-C."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if os.environ.get("HYDRA_FULL_ERROR"):
            return
        if isinstance(error, KeyboardInterrupt):
            print("pspo: interrupted", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, PspoError | OSError):
            what = "wrong setting: " if isinstance(error, ConfigError) else ""
            print(" ".join(f"pspo: {what}{error}".splitlines()), file=sys.stderr)  # names of files may have several
            sys.exit(error.status if isinstance(error, PspoError) else 1)


def bound_spinning() -> None:
    """Before torch is loaded: how long OpenMP's threads wait by spinning. At the default a second thread stalls a step
    for seconds whenever another process computes; without any spinning it gains nothing (docs/small-world.md)."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def cells(argv: Sequence[str]) -> list[list[str]]:
    """The override lists that a command line stands for: one, or with `-m` the product of its sweeps."""
    parsed = _parsed(argv)
    if not {"-m", "--multirun"} & set(argv):
        return [[str(override.input_line) for override in parsed]]
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in parsed
    ]
    return [list(cell) for cell in itertools.product(*choices)]


def swept_by(argv: Sequence[str]) -> list[str] | None:
    """The settings that a sweep goes over; None for a command line without `-m`. Raises ConfigError for those that its
    launcher needs before there are cells."""
    if not {"-m", "--multirun"} & set(argv):
        return None
    swept = [override for override in _parsed(argv) if override.is_sweep_override()]
    for override in swept:
        key, _, values = str(override.input_line).partition("=")
        if key.startswith(("slurm", "hydra")):
            raise ConfigError(key, values, "must be one value for all cells of a sweep")
    return [override.get_key_element() for override in swept]


def name_of_cell(swept: Sequence[str]) -> str:
    """What tells the running cell of a sweep from the others: surrogate.alpha=0.1 seed=2."""
    overrides = [str(text) for text in HydraConfig.get().overrides.task]
    return " ".join(text for text in overrides if text.partition("=")[0] in swept) or "the run"


def prepare_launcher(name: str, overrides: Sequence[str]) -> str:
    """Checks the settings of a sweep's launcher; its class. Raises ConfigError, PspoError where it cannot work here."""
    with hydra.initialize_config_dir(config_dir=str(_root(name)), version_base="1.3"):
        hydra_cfg = hydra.compose(name, overrides=list(overrides), return_hydra_config=True).hydra
    try:
        settings: Any = OmegaConf.to_container(hydra_cfg.launcher, resolve=True)
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):  # of a resolver of sweeps.py
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from error
        launcher = hydra_cfg.runtime.choices["hydra/launcher"]
        raise ConfigError("hydra/launcher", launcher, f"is not for this program: {_one_line(error)}") from error
    kind = str(settings["_target_"]).rpartition(".")[2]
    if kind == "SlurmLauncher":
        sweeps.watch_queue(settings["submitit_folder"].replace("%j", "<job>"))
    return kind


def refuse_launchers(overrides: Sequence[str]) -> None:
    """Raises ConfigError for a launcher that would have the cells of a sweep answer elsewhere."""
    for text in overrides:
        key, _, launcher = text.partition("=")
        if key == "hydra/launcher" and launcher != "basic":
            raise ConfigError(key, launcher, "must be basic: this program answers here, one cell after the other")


def _parsed(argv: Sequence[str]) -> list[Override]:
    flags = [arg for arg in argv if arg.startswith("-") and arg not in ("-m", "--multirun")]
    texts = [arg for arg in argv if not arg.startswith("-") and ("=" in arg or not flags)]  # a flag may have a value
    try:
        return OverridesParser.create().parse_overrides(texts)
    except (HydraException, ValueError) as error:  # ValueError: an integer of more digits than Python reads
        raise _readable(error, texts) from error


def _root(name: str) -> Path:
    """The folder Hydra searches: `conf/`, or `conf/<name>/` for a program with settings that are groups of `conf/`."""
    return CONF / name if (CONF / name / f"{name}.yaml").is_file() else CONF


def _said(cfg: Any) -> Any:
    """`dataclasses.asdict` without fields at their defaults."""
    if is_dataclass(cfg):
        return {f.name: _said(value) for f in fields(cfg) if (value := getattr(cfg, f.name)) != f.default}
    if isinstance(cfg, dict):
        return {key: _said(value) for key, value in cfg.items()}
    return [_said(value) for value in cfg] if isinstance(cfg, list | tuple) else cfg


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _first(error: ValidationError, values: Any) -> ConfigError:
    """pydantic's first complaint in our words."""
    found = error.errors()[0]
    # A discriminated union adds its tag to the path ("surrogate", "pspo", "alpha"); a user knows surrogate.alpha.
    place: list[str] = []
    here: Any = values
    for part in found["loc"]:
        if isinstance(here, dict) and part not in here and part in (here.get("name"), here.get("kind")):
            continue
        if isinstance(here, dict):
            here = here.get(part)
        place.append(str(part))
    setting = ".".join(place)
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return ConfigError(setting, found["input"], "there is no such setting")
    if found["type"] == "missing":
        return ConfigError(setting, "???", "has no value")
    message = found["msg"]
    return ConfigError(setting, found["input"], message[0].lower() + message[1:])


def _readable(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's and OmegaConf's complaints, which take several lines, as one."""
    text = _one_line(error)
    missing = re.search(r"Key '([^']+)' is not in struct.*?full_key: (\S+)", text)
    if missing is None and error.__cause__ is not None:
        missing = re.search(r"Key '([^']+)' is not in struct.*?full_key: (\S+)", _one_line(error.__cause__))
    if missing:
        setting, value = missing.group(2), ""
        for override in overrides:  # Hydra names the first unknown part; show the whole setting as it was typed
            key, _, given = override.partition("=")
            if key == setting or key.startswith(setting + "."):
                setting, value = key, given
        chosen = [o for o in overrides if o.partition("=")[0] == setting.partition(".")[0]]
        beside = f" under {chosen[0]}" if chosen and "." in setting else ""
        return ConfigError(setting, value, f"there is no such setting{beside}")
    unset = re.search(r"Missing mandatory value: (\S+)", text)
    if unset:
        return ConfigError(unset.group(1), "???", "has no value")
    unknown = re.search(r"Could not find '(hydra/[^/']+|[^/']+)/([^']*)'", text)
    if unknown:
        allowed = sorted(path.stem for path in (CONF / unknown.group(1)).glob("*.yaml"))
        return ConfigError(
            unknown.group(1), unknown.group(2), f"must be one of {', '.join(allowed) or '(no such group)'}"
        )
    return ConfigError("command line", " ".join(overrides) or "(none)", text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
