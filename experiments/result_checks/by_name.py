"""Every check by its name.

Each check takes the settings of its entry in ``configs/check_results.py``, measures one
cell of a published table again, with the code that measured it first, and returns what
is to be compared. It names the stored file that it reads, and raises FileNotFoundError
or ValueError, which name what is missing.
"""

from collections.abc import Callable, Mapping

from experiments.result_checks.finetuning import (
    balancing_row,
    framework_cell,
    killed_run,
    table_cell,
    tuned_trial,
)
from experiments.result_checks.optimizer import (
    ablation_row,
    calibration_setting,
    card_value,
    meta_test_cell,
    safeguard_cell,
    style_score,
)
from experiments.result_checks.programs import (
    meltr_operations,
    plan_bytes,
    pruning_operations,
)
from experiments.result_checks.stored import Settings
from meta_opt.studies.reproduction.compare import Comparison

CHECKS: Mapping[str, Callable[[Settings], list[Comparison]]] = {
    check.__name__: check
    for check in (
        *(meta_test_cell, card_value, safeguard_cell, ablation_row),
        *(calibration_setting, style_score, meltr_operations, plan_bytes),
        pruning_operations,
        *(tuned_trial, table_cell, framework_cell, balancing_row, killed_run),
    )
}
"""By the name that a configuration gives as ``kind``."""
