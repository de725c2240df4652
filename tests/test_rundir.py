import threading
from dataclasses import replace

import pytest

from pspo.config import TrainConfig, compose, load_yaml, to_yaml
from pspo.errors import ConfigError, PspoError
from pspo.rundir import claimed


@pytest.fixture(scope="module")
def cfg():
    return compose("train", TrainConfig)


def test_one_process_at_a_time(cfg, tmp_path, capsys):
    with claimed(tmp_path / "run", cfg) as complete:
        assert complete is False
        with pytest.raises(PspoError, match="another process"), claimed(tmp_path / "run", cfg, patience=1):
            pass
        assert "held by another process; waiting 1 s" in capsys.readouterr().err
    with claimed(tmp_path / "run", cfg, patience=0):  # given back
        pass


def test_a_process_that_is_about_to_end_is_waited_for(cfg, tmp_path):
    first = claimed(tmp_path / "run", cfg)
    first.__enter__()
    threading.Timer(0.5, lambda: first.__exit__(None, None, None)).start()
    with claimed(tmp_path / "run", cfg, patience=10) as complete:
        assert not complete


def test_what_an_earlier_attempt_left_stays(cfg, tmp_path):
    (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    (tmp_path / "DONE").touch()
    with claimed(tmp_path, cfg) as complete:
        assert complete
    (tmp_path / "DONE").unlink()
    with claimed(tmp_path, cfg) as complete:
        assert not complete and (tmp_path / "checkpoints" / "step-3").exists()


def test_a_process_killed_at_its_very_start_leaves_nothing_in_the_way(cfg, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.4711").write_text("seed: ")
    with claimed(tmp_path, cfg):
        assert load_yaml(tmp_path / "config.yaml", TrainConfig) == cfg


def test_what_does_not_change_the_numbers_may_change(cfg, tmp_path):
    with claimed(tmp_path, cfg):
        pass
    other = replace(cfg, saving=replace(cfg.saving, every=7), tracking=replace(cfg.tracking, wandb="offline"))
    with claimed(tmp_path, other):
        assert load_yaml(tmp_path / "config.yaml", TrainConfig) == other


def test_settings_of_an_older_version_are_no_hindrance_where_no_number_depends_on_them(cfg, tmp_path):
    with claimed(tmp_path, cfg):
        pass
    text = (tmp_path / "config.yaml").read_text()
    assert "  every: 1\n" in text
    (tmp_path / "config.yaml").write_text(
        text.replace("  every: 1\n", "  often: true\n")
    )  # of saving, which had others
    with claimed(tmp_path, cfg):
        assert load_yaml(tmp_path / "config.yaml", TrainConfig) == cfg


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: (d / "thesis.txt").write_text("x"), "is not empty and holds no run"),
        (lambda d: (d / "config.yaml").write_text("a: [broken"), "its config.yaml is not one of this version"),
        (lambda d: (d / "config.yaml").write_text("seed: 1\n"), "its config.yaml is not one of this version"),
        (
            lambda d: (d / "config.yaml").write_text(to_yaml(compose("train", TrainConfig, ["seed=9"]))),
            "other settings",
        ),
    ],
)
def test_a_directory_that_is_not_this_runs_is_refused_and_left_alone(cfg, tmp_path, make, message):
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=message), claimed(tmp_path, cfg):
        pass
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"} == before


def test_a_file_in_its_place(cfg, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(PspoError, match="cannot be written"), claimed(tmp_path / "run", cfg):
        pass
    with pytest.raises(PspoError, match="cannot be written"), claimed(tmp_path / "run" / "x", cfg):
        pass
