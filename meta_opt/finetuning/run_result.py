"""The result of a fine-tuning run."""

import dataclasses
from typing import Any

from meta_opt.finetuning.state import TrainState


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        state: the final state, on the mesh.
        history: records of metrics, ``{"step": ..., "train/loss": ...}`` or
            ``{"step": ..., "validation/...": ...}``.
        actions: actions of automatic recovery, ``{"step": ..., "action": ...,
            "reason": ...}``.
        train_seconds: time of the steps including their input, without compilation,
            evaluation and saving; summed over all parts of an interrupted run.
        input_seconds: part of ``train_seconds`` that was spent waiting for batches.
        compile_seconds: time of tracing and compiling the step in this process.
        optimizer_bytes: bytes of optimizer state, summed over distinct shards.
        trainable: number of trainable parameters.
        steps_taken: number of steps in this process; 0 if the run had finished before.
        batch_size: B, the batch size of a step.
        privacy: privacy loss of a private run
            (`meta_opt.finetuning.privacy_accounting.spent`).
    """

    state: TrainState
    history: list[dict[str, Any]]
    actions: list[dict[str, Any]]
    train_seconds: float
    input_seconds: float
    compile_seconds: float
    optimizer_bytes: int
    trainable: int
    steps_taken: int
    batch_size: int
    privacy: dict[str, Any] | None = None

    @property
    def last_evaluation(self) -> dict[str, Any] | None:
        """Returns the last record of an evaluation."""
        records = (r for r in reversed(self.history) if "validation/loss" in r)
        return next(records, None)

    def figures(self) -> dict[str, Any]:
        """Returns measured times, sizes and counts, as JSON values."""
        names = ("train_seconds", "input_seconds", "compile_seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "optimizer_bytes": self.optimizer_bytes,
            "trainable": self.trainable,
            "nonfinite": int(self.state.nonfinite),
            **({} if self.privacy is None else {"privacy": self.privacy}),
        }
