"""Runs under faults: ``full``, with fifty kills of each kind, and ``smoke``."""

import ml_collections

from configs import common


def full() -> ml_collections.ConfigDict:
    """Fifty kills of every kind of run, and every other fault."""
    config = ml_collections.ConfigDict()
    config.kinds = (
        *("finetune_full", "finetune_lora", "captions", "multimodal", "meltr"),
        *("progressive", "meta_training", "direct_search", "table_cell"),
        "baseline_search",
    )
    # Trials of each kind, and kills of each trial.
    config.trials = 10
    config.kills = 5
    config.damages = ("each_file", "cut", "flipped", "missing")
    config.faults = (
        *("second_run", "terminated_while_saving", "disk_full", "file_size_limit"),
        *("read_only", "data_changed", "data_vanished", "data_vanished_meanwhile"),
        *("clock_set_back", "memory_short"),
    )
    config.processes = ("killed", "first_killed", "stopped")
    config.results = "results/faults"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Three kills of one kind, damaged files and a second run."""
    config = full()
    config.kinds = ("finetune_full",)
    config.trials = 1
    config.kills = 3
    config.damages = ("each_file",)
    config.faults = ("second_run",)
    config.processes = ()
    config.results = "runs/faults_smoke"
    return config


get_config = common.variants(full, smoke)
