"""Settings of the fine-tuning loop."""

import dataclasses
import math

from meta_opt.finetuning.recovery import RecoveryConfig
from meta_opt.types import check_least

MAX_RECORDS = 20_000
"""Of a run's losses: its files and its memory stay small, however long it is."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of a run, and when it evaluates, logs and saves.

    Attributes:
        num_steps: number of optimizer updates; 0: `meta_opt.finetuning.runs.finetune`
            chooses by the number of examples.
        batch_size: B, over all devices and micro-batches of one update; 0: chosen by
            the number of examples.
        accumulation_steps: number of micro-batches per update.
        seed: random seed of the steps, such as of dropout.
        eval_every: steps between evaluations; the last step is always evaluated.
        evaluate_at_start: whether to also evaluate before the first step.
        log_every: steps between records, which have the means since the last record. A
            run has at most `MAX_RECORDS` records, so a long run may use a longer
            interval (`record_every`).
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_latest: number of newest checkpoints to keep.
        keep_best: number of best checkpoints to keep in addition.
        best_metric: validation metric that ranks checkpoints.
        best_mode: ``min`` or ``max``, whichever is better.
        feedback: whether ``best_metric`` is given to the optimizer after each
            evaluation. Validation data then takes part in training.
        progress: whether to show a progress bar on a terminal.
        recovery: automatic recovery from loss spikes, losses that are not finite, a
            metric that no longer improves, and too little memory.
    """

    num_steps: int = 0
    batch_size: int = 0
    accumulation_steps: int = 1
    seed: int = 0
    eval_every: int = 100
    evaluate_at_start: bool = True
    log_every: int = 10
    checkpoint_every: int = 100
    keep_latest: int = 2
    keep_best: int = 1
    best_metric: str = "loss"
    best_mode: str = "min"
    feedback: bool = False
    progress: bool = True
    recovery: RecoveryConfig = dataclasses.field(default_factory=RecoveryConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_least("", self, num_steps=0, batch_size=0, seed=0)
        check_least("", self, eval_every=1, log_every=1, checkpoint_every=1)

    @property
    def record_every(self) -> int:
        """Number of steps between records.

        >>> LoopConfig(1000, log_every=10).record_every
        10
        >>> LoopConfig(10**7, log_every=10).record_every
        500
        """
        return max(self.log_every, math.ceil(self.num_steps / MAX_RECORDS))

    @property
    def idle_settings(self) -> tuple[str, ...]:
        """Names of settings that do not affect the result and may change on resume.

        With recovery, the intervals do affect the result: the loss is judged at each
        record, and a rollback restores the last checkpoint.

        >>> "log_every" in LoopConfig().idle_settings
        True
        >>> "log_every" in LoopConfig(recovery=RecoveryConfig(True)).idle_settings
        False
        """
        intervals = () if self.recovery.enabled else ("log_every", "checkpoint_every")
        return "progress", "keep_latest", "keep_best", *intervals

    @property
    def evaluates_first(self) -> bool:
        """Whether there is an evaluation before the first step.

        A misspelt metric is then found at the start instead of after many steps.
        """
        return self.evaluate_at_start or self.best_metric != LoopConfig.best_metric
