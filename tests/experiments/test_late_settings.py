"""Settings in sections that the config file leaves out, and Nones."""

import pytest
from ml_collections import ConfigDict

from experiments.late_settings import parse_value, set_late, split_late
from experiments.workloads import read_run

FILE = "configs/multimodal.py:smoke"


@pytest.mark.parametrize(
    "argv",
    [[f"--config={FILE}"], ["--config", FILE], []],
    ids=["=", "space", "default"],
)
def test_sections_that_the_file_leaves_out(argv, root_as_cwd):
    given = ["--config.balancing.alpha=0.25", "--config.balancing.method=ogm_ge"]
    plain = ["--config.loop.eval_every=3", "--config.modality_dropout=0.1"]
    none = ["--config.export.path=None"]
    kept, late = split_late([*argv, *given, *plain, *none], FILE, partial=True)
    assert kept == [*argv, *plain]
    assert late == {
        "balancing.alpha": 0.25,
        "balancing.method": "ogm_ge",
        "export.path": None,
    }
    from configs.multimodal import get_config

    config = get_config("smoke")
    del late["export.path"]
    set_late(config, late)
    run = read_run(config.to_dict())
    assert (run.balancing.method, run.balancing.alpha) == ("ogm_ge", 0.25)


def test_values_after_a_space(root_as_cwd):
    given = ["--config.balancing.method", "ogm_ge", "--config.export.path", "None"]
    kept, late = split_late([*given, "--config.num_steps", "3"], FILE, partial=True)
    assert kept == ["--config.num_steps=3"]
    assert late == {"balancing.method": "ogm_ge", "export.path": None}


def test_a_config_that_states_everything_gets_no_sections(root_as_cwd):
    given = ["--config=configs/ablations.py:shipped", "--config.new.x=1"]
    assert split_late(given, None, partial=False) == (given, {})
    from configs.ablations import get_config

    config = get_config("shipped").lock()
    with pytest.raises(ValueError, match=r"--config.new.x=None: no setting 'new'"):
        set_late(config, {"new.x": None})


@pytest.mark.parametrize("key", ["loop.steps.x", "loop.steps.x.y"])
@pytest.mark.parametrize("locked", [True, False])
def test_a_setting_in_one_that_is_no_section_is_named(key, locked):
    config = ConfigDict({"loop": {"steps": 3}})
    if locked:
        config.lock()
    message = rf"--config.{key}=None: 'steps' is a setting, 3, and has no settings of"
    with pytest.raises(ValueError, match=message):
        set_late(config, {key: None})


@pytest.mark.parametrize("text", ["{[]: 1}", "(1,", "x" * 100, "(" * 500])
def test_what_is_no_literal_is_text(text):
    assert parse_value(text) == text


def test_files_that_cannot_be_read_are_left_to_ml_collections(tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError")
    for file in (tmp_path / "broken.py", tmp_path / "none.py"):
        given = [f"--config={file}", "--config.a.b=1"]
        assert split_late(given, None, partial=True) == (given, {})


@pytest.fixture
def root_as_cwd(monkeypatch):
    from paths import ROOT

    monkeypatch.chdir(ROOT)
