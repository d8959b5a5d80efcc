"""The settings of searches for baselines are complete before anything is built."""

import pytest

from configs import tune
from experiments.workloads import read_run
from meta_opt.tuning.search import SearchConfig
from meta_opt.tuning.space import Setting
from meta_opt.types import from_config


@pytest.mark.parametrize(
    "name", ["nano_clipart_adamw", "openclipart_answers_adamw", "smoke"]
)
def test_configs(name):
    config = tune.get_config(name).to_dict()
    run = read_run(config["base"])
    search = from_config(SearchConfig, config["search"])
    # Trials are pruned at evaluations before the last one.
    assert run.loop.eval_every <= run.loop.num_steps
    assert 0 <= search.min_resource < run.loop.num_steps
    for setting in config["space"].values():
        from_config(Setting, setting)
    assert run.optimizer.name == "adamw"
