"""The comparison of balancing: its variants, its report, and a run of them."""

import json

import pytest
from multimodal_toy import MODEL, inputs_config

from configs import balancing as configs
from meta_opt.finetuning.balancing import OF_LOSSES
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.studies.balancing.measure import (
    BalancingStudyConfig,
    measure,
    variants,
)
from meta_opt.studies.balancing.report import write_balancing
from meta_opt.workloads.multimodal import MultimodalConfig


def test_variants_differ_in_what_their_names_say():
    found = variants(BalancingStudyConfig(alpha=0.3, modality_dropout=0.1))
    methods = [
        (v.balancing.method, v.balancing.noise, v.modality_dropout)
        for v in found.values()
    ]
    assert methods == [
        ("none", True, 0.0),
        ("ogm_ge", False, 0.0),
        ("ogm_ge", True, 0.0),
        ("none", True, 0.1),
        ("ogm_ge", True, 0.1),
        *((method, True, 0.0) for method in OF_LOSSES),
    ]
    of_modalities = [v.balancing for v in found.values()]
    assert all(b.alpha == 0.3 for b in of_modalities if b.method == "ogm_ge")
    assert list(found)[4] == "OGM-GE, modality dropout 0.1"


def test_the_report_has_means_and_spreads(tmp_path):
    def a_run(accuracy, text):
        alone = {"image": 0.25, "text": text}
        return {"accuracy": accuracy, "loss": 1.0, "alone": alone, "step_ms": 12.4}

    rows = [
        {"name": "none", "runs": [a_run(0.5, 0.5), a_run(0.6, 0.7)]},
        {"name": "OGM", "runs": [a_run(0.75, 0.5), a_run(0.75, 0.5)]},
    ]
    shown = write_balancing(tmp_path, rows, {"task": "toy"})
    page = (tmp_path / "balancing.md").read_text()
    assert "0.550 (0.100)" in page and "0.600 (0.200)" in page and "- task: toy" in page
    assert "OGM" in shown and "0.750 (0.000)" in shown
    assert json.loads((tmp_path / "balancing.json").read_text())["rows"] == rows


@pytest.mark.parametrize("name", ["clipart_category", "tuxpaint_trimodal", "smoke"])
def test_configs(name):
    from experiments.workloads import read_run

    settings = configs.get_config(name).to_dict()
    assert settings.pop("results") and settings.pop("study")["seeds"]
    assert read_run(settings).loop.num_steps > 0


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(root, tmp_path):
    base = RunConfig(
        MultimodalConfig(inputs_config(root), MODEL),
        LoopConfig(2, 12, eval_every=2, evaluate_at_start=False, progress=False),
        OptimizerConfig("adamw", num_steps=2),
    )
    config, names = BalancingStudyConfig(seeds=(1, 2)), []
    finished = tmp_path / "finished.json"
    rows = list(measure(base, config, finished, names.append))
    assert len(names) == 18 and len(rows) == 9
    for row in rows:
        one, two = row["runs"]
        assert one["loss"] != two["loss"]
        assert all(0 < share < 1 for share in one["alone"].values())
    assert list(measure(base, config, finished, names.append)) == rows
    assert len(names) == 18
