"""Facts about a stress test for its report: how it was measured."""

from collections.abc import Sequence
from pathlib import Path

from meta_opt.studies.stress.study import StressTest


def facts_of(test: StressTest) -> dict[str, str]:
    """Returns facts about how a stress test was measured, name to value."""
    config = test.config
    facts = {
        "data": f"{Path(config.data.folder).name}, {len(test.classes)} categories, "
        f"{test.test_pictures} test pictures",
        "pictures of other widths": "are fitted to the width of training"
        if config.tests.fitted
        else "are given to the network as they are",
    }
    if test.shift_labels:
        named: Sequence[str] = [
            theirs if theirs == ours else f"{theirs} (as {ours})"
            for theirs, ours in test.shift_labels.items()
        ]
        facts["data " + config.shift.name] = (
            f"{Path(config.shift.folder).name}, of which these classes were taken: "
            + ", ".join(named)
        )
    if test.learners:
        training = config.training
        facts["training"] = (
            f"epochs {training.epochs}; steps at least {training.min_steps}"
            + (f", at most {training.max_steps}" if training.max_steps else "")
            + f"; seeds {', '.join(map(str, training.seeds))}; "
            + ", ".join(
                f"{x.name} under {x.run.optimizer.name} in batches of {x.batch_size}"
                for x in test.learners
            )
        )
    return facts
