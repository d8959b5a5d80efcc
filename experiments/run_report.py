"""What the commands that train print at the end."""

from collections.abc import Mapping
from typing import Any


def print_run(name: str, result: Any, test: Mapping[str, float]) -> None:
    """Prints how long a run was, what was done about trouble, and the test's metrics.

    Args:
        name: of the optimizer.
        result: a `meta_opt.finetuning.loop.RunResult`.
        test: metrics.
    """
    print(f"{name}: {int(result.state.step)} steps")
    for record in result.actions:
        print(f"  step {record['step']}, {record['action']}: {record['reason']}")
    for metric, value in test.items():
        print(f"  test {metric:24} {value:.4f}")
    print(f"  seconds training              {result.train_seconds:.1f}")
