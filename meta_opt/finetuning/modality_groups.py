"""Optimizers that know which parameters of a workload are of which modality."""

import dataclasses

from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.workloads.workload import Workload


def with_groups(optimizer: OptimizerConfig, workload: Workload) -> OptimizerConfig:
    """The optimizer's settings, with the workload's modality groups behind their own.

    The learned optimizer and the hand-designed rule log their decisions by group;
    others have no use for them.
    """
    groups = (*optimizer.groups, *workload.groups)
    return dataclasses.replace(optimizer, groups=groups)
