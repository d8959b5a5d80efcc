"""A command that compares variants of a run: from settings to the report."""

import pytest

from configs import balancing as configs
from experiments.variants import compare_variants
from meta_opt.studies.balancing.measure import BalancingStudyConfig


def test_settings_reach_the_study_and_the_report(tmp_path, capsys):
    given = {}

    def measure(run, study, finished, announce):
        given.update(run=run, study=study, finished=finished)
        announce("none: seed 0")
        return [{"name": "none"}]

    def write(folder, rows, facts):
        given.update(folder=folder, rows=rows, facts=facts)
        return "the table"

    settings = configs.get_config("smoke").to_dict()
    compare_variants(
        "toy",
        settings,
        tmp_path,
        BalancingStudyConfig,
        measure,
        write,
        lambda run, study: {"task": run.workload.inputs.task, "alpha": study.alpha},
    )
    assert given["run"].loop.num_steps == 2 and given["study"].seeds == (0,)
    assert given["finished"] == tmp_path / "finished.json"
    assert given["folder"] == settings["results"] and given["rows"] == [
        {"name": "none"}
    ]
    facts = given["facts"]
    assert next(iter(facts)) == "command" and facts["alpha"] == 0.5
    assert (facts["steps"], facts["seeds"]) == (2, "0")
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["none: seed 0", "the table"]
    assert printed[2].endswith("/toy.md, toy.json")
    with pytest.raises(ValueError, match=r"config.study has no setting 'seed'"):
        wrong = {**settings, "study": {"seed": 0}}
        compare_variants("toy", wrong, tmp_path, BalancingStudyConfig, *3 * (measure,))
