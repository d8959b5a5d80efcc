"""Adds a workload's modality groups to the settings of an optimizer."""

import dataclasses

from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.workloads.workload import Workload


def with_groups(optimizer: OptimizerConfig, workload: Workload) -> OptimizerConfig:
    """Returns optimizer settings with the workload's modality groups appended.

    Only the learned optimizer and the hand-designed rule, which log decisions by group,
    use them.
    """
    groups = (*optimizer.groups, *workload.groups)
    return dataclasses.replace(optimizer, groups=groups)
