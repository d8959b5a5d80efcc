"""What is measured of long runs, many checkpoints and much data, in small."""

from configs import load as load_config
from experiments.load_table import table
from experiments.load_trials import TRIALS, jsonl_lines, many_checkpoints


def test_only_the_kept_checkpoints_remain():
    found = many_checkpoints(4)
    # The metric is the same, and the latest of the best is kept.
    assert found["kept"] == [3, 4]
    few = found["entries"]
    # Orbax's database may need one file more; a checkpoint has some twenty.
    assert abs(many_checkpoints(6)["entries"] - few) <= 2


def test_the_table_has_each_trial():
    counts = load_config.full().counts.to_dict()
    assert counts.keys() == TRIALS.keys()
    steps = {
        **{"seconds": 9.0, "mib": [300.0, 301.5], "files": [30, 30]},
        "bytes": {"metrics.jsonl": 2**20, "timing.jsonl": 2**19},
    }
    text = table({"lines": jsonl_lines(300), "steps": steps}, counts)
    assert "| 1,000,000 lines | " in text
    assert (
        "| 10,000 steps | 9.0 | 300.0 -> 301.5 | open files 30 -> 30; "
        "metrics.jsonl 1.0 MiB, timing.jsonl 0.5 MiB |"
    ) in text
