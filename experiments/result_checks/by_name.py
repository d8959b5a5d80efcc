"""All checks by name.

Each check takes the settings of its entry in ``configs/check_results.py``, remeasures
one cell of a published table with the code that measured it first, and returns the
comparisons with stored numbers. It raises FileNotFoundError or ValueError with a
message that names what is missing.
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
"""Checks by name, which a configuration gives as ``kind``."""
