"""Short runs of every workload end where they ended before.

    PYTHONPATH=.:tests/fixtures python tests/workloads/test_golden_runs.py

renews the numbers, after a change that is meant to change them.
"""

import json
import tempfile
from pathlib import Path

import multimodal_toy as toy
import numpy as np
import paths
import pytest

EXPECTED = paths.GOLDEN / "runs.json"
LOOP = {
    "num_steps": 4,
    "eval_every": 4,
    "checkpoint_every": 4,
    "log_every": 1,
    "evaluate_at_start": False,
    "progress": False,
}
IMAGE_TEXT = ("nano_clipart", "nano_clipart_lora", "nano_captions")
MULTIMODAL = ("classify", "retrieve")
CASES = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in IMAGE_TEXT),
    "toy_classify",
    pytest.param("toy_retrieve", marks=pytest.mark.slow),
]


def image_text(name):
    from configs import finetune as configs
    from meta_opt.finetuning.run_config import read_run_config
    from meta_opt.workloads.image_text import ImageTextConfig

    config, loop = configs.get_config(name), dict(LOOP)
    config.num_steps, config.batch_size = loop.pop("num_steps"), 8
    config.loop.update(loop)
    return read_run_config(ImageTextConfig, config.to_dict())


def multimodal(root, kind):
    from meta_opt.finetuning.loop_config import LoopConfig
    from meta_opt.finetuning.run_config import RunConfig
    from meta_opt.models.towers import STACKED
    from meta_opt.optimizers.registry import OptimizerConfig
    from meta_opt.workloads.multimodal import MultimodalConfig

    return RunConfig(
        MultimodalConfig(toy.inputs_config(root, kind), toy.MODEL),
        LoopConfig(batch_size=12, **LOOP),
        OptimizerConfig("learned", num_steps=4, stacked=STACKED),
    )


def measured(case, root):
    from meta_opt.finetuning.runs import finetune

    if case in IMAGE_TEXT:
        finished = finetune(image_text(case))
    else:
        with pytest.MonkeyPatch.context() as patch:
            toy.make_toys(root, patch)
            finished = finetune(multimodal(root, case.removeprefix("toy_")))
    history = finished.result.history
    losses = [r["train/loss"] for r in history if "train/loss" in r]
    return {"train": losses, "test": finished.test}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_where_it_ended_before(case, tmp_path):
    expected, found = json.loads(EXPECTED.read_text())[case], measured(case, tmp_path)
    np.testing.assert_allclose(found["train"], expected["train"], rtol=1e-3)
    assert found["test"].keys() == expected["test"].keys()
    assert found["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=2e-3)


if __name__ == "__main__":
    cases = [*IMAGE_TEXT, *(f"toy_{kind}" for kind in MULTIMODAL)]
    with tempfile.TemporaryDirectory() as folder:
        numbers = {case: measured(case, Path(folder) / case) for case in cases}
    EXPECTED.write_text(json.dumps(numbers, indent=1) + "\n")
