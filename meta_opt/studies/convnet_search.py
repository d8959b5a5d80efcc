"""Hyperparameter search for image classifiers, with runs measured in epochs.

The protocol of the convolutional baselines of progressive few-shot fine-tuning
(Roumeliotis et al. 2025, IEEE Access): each trial trains for at most a number of
epochs, stops early, and is scored by weighted F1 on the validation split. The batch
size is one of the searched settings.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meta_opt.finetuning.early_stopping import EarlyStopping
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.state import fingerprint
from meta_opt.finetuning.trial import Evaluation, Report, Trial, TrialRun
from meta_opt.interruption import Interrupted
from meta_opt.leases import EXPIRY_SECONDS
from meta_opt.metrics.intervals import interval
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.tuning.injected import injected
from meta_opt.tuning.search import SearchConfig, search
from meta_opt.tuning.space import Setting
from meta_opt.types import check_keys, check_name

if TYPE_CHECKING:
    import optuna

_BATCH_SIZE = "batch_size"


@dataclasses.dataclass(frozen=True)
class EpochsConfig:
    """Length and objective of a run.

    Attributes:
        max_epochs: length of a run and of its learning rate schedule. An epoch leaves
            out an incomplete last batch.
        metric: validation metric to maximise, taken at the epoch that is best by
            ``early_stopping.metric``.
        early_stopping: early stopping, with ``patience`` in epochs.
    """

    max_epochs: int = 50
    metric: str = "weighted_f1"
    early_stopping: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)

    def __post_init__(self) -> None:
        """Checks the range."""
        if self.max_epochs < 1:
            raise ValueError(f"max_epochs={self.max_epochs} must be at least 1")

    def best_epoch(self, evaluations: Sequence[Evaluation]) -> int:
        """Returns the epoch (from 1) whose parameters a run keeps."""
        name = self.early_stopping.metric
        return 1 + self.early_stopping.best([e.validation[name] for e in evaluations])

    def value(self, evaluations: Sequence[Evaluation]) -> float:
        """Returns the metric of the epoch whose parameters a run keeps."""
        return evaluations[self.best_epoch(evaluations) - 1].validation[self.metric]


class EpochTrial:
    """Trains a workload with length and evaluations measured in epochs.

    Args:
        base: settings of a run: workload, optimizer, batch size and seed.
        config: length and objective of runs.
        test: whether to evaluate the test split with the parameters of the best epoch.

    Attributes:
        examples: number of training examples.
        fingerprint: fingerprint of the parameters before training.

    Raises:
        ValueError: the workload does not have the metric.
    """

    def __init__(
        self, base: RunConfig, config: EpochsConfig, test: bool = False
    ) -> None:
        self._base, self._config = base, config
        self._trial = Trial(
            base,
            injected,
            test=test,
            metric=config.metric,
            early_stopping=config.early_stopping,
        )
        workload = self._trial.workload
        self.examples = workload.describe()["examples"]["train"]
        self.fingerprint = fingerprint((workload.params, workload.frozen))
        # Checked here, because an error during a search would only fail one trial.
        assert workload.evaluate is not None
        given = workload.evaluate(workload.params, workload.frozen, "validation")
        check_name("config.metric", config.metric, given)
        check_name("early_stopping.metric", config.early_stopping.metric, given)

    def __call__(
        self,
        settings: Mapping[str, Any],
        seed: int | None = None,
        report: Report | None = None,
    ) -> TrialRun:
        """Trains one run.

        Args:
            settings: optimizer settings that replace the base's, and ``batch_size``.
            seed: random seed of the head's initialisation, the order of examples and
                dropout; None for the base's.
            report: called after each epoch with its number (from 1) and the metric.

        Raises:
            ValueError: unknown settings, or a batch size above the number of examples.
        """
        settings = dict(settings)
        batch_size = settings.pop(_BATCH_SIZE, self._base.loop.batch_size)
        if batch_size > self.examples:
            raise ValueError(
                f"batch_size={batch_size} is more than the {self.examples} training "
                "examples"
            )
        per_epoch = self.examples // batch_size
        loop = dataclasses.replace(
            self._base.loop, batch_size=batch_size, eval_every=per_epoch
        )
        num_steps = self._config.max_epochs * per_epoch
        optimizer = self._trial.optimizer({**settings, "num_steps": num_steps})
        of_epoch = report and (lambda step, value: report(step // per_epoch, value))
        return self._trial(optimizer, seed, of_epoch, loop)


def search_settings(
    trial: EpochTrial,
    base: RunConfig,
    config: EpochsConfig,
    space: Mapping[str, Setting],
    settings: SearchConfig,
    *,
    storage: str | Path,
    name: str,
    expiry_seconds: float = EXPIRY_SECONDS,
) -> "optuna.Study":
    """Runs or resumes the study in ``storage``; several processes may share it.

    Args:
        trial: trial made from ``base`` and ``config``.
        base: settings of a run; a study is only resumed with the same settings.
        config: length and objective of runs; the pruner's unit is the epoch.
        space: search space of optimizer settings and ``batch_size``.
        settings: settings of the search.
        storage: storage of the study, see `meta_opt.tuning.storage.Storage`.
        name: name of the study.
        expiry_seconds: see `meta_opt.tuning.search.search`.

    Returns:
        The study; see `meta_opt.tuning.search.search`.

    Raises:
        Interrupted: on SIGINT or SIGTERM; the same call resumes.
        ValueError: an unknown optimizer setting, batch sizes that are not choices, a
            batch size above the number of examples, or a stored study with another
            space, run or seed.
        RuntimeError: no trial completed.
    """
    fields = {field.name for field in dataclasses.fields(OptimizerConfig)}
    check_keys("config.space", space, (*sorted(fields - {"num_steps"}), _BATCH_SIZE))
    sizes = space[_BATCH_SIZE].choices if _BATCH_SIZE in space else ()
    # A range draws floats, with which every trial would fail.
    if _BATCH_SIZE in space and not (sizes and all(map(_is_size, sizes))):
        raise ValueError(
            f"config.space.batch_size={space[_BATCH_SIZE]} must be a choice of "
            "integers: kind='choice', choices=(16, 32, 64)"
        )
    if too_large := [x for x in sizes if x > trial.examples]:
        raise ValueError(
            f"config.space.batch_size has the choices {too_large}, more than the "
            f"{trial.examples} training examples: leave them out"
        )

    def objective(found: dict[str, Any], report: Report) -> float:
        return config.value(trial(found, report=report).evaluations)

    return search(
        settings,
        space,
        objective,
        storage=storage,
        name=name,
        setup={
            "run": base.settings(),
            "epochs": dataclasses.asdict(config),
            "fingerprint": trial.fingerprint,
        },
        stop_on=(Interrupted,),
        maximize=True,
        expiry_seconds=expiry_seconds,
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def measure_setting(
    trial: EpochTrial,
    config: EpochsConfig,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Runs a setting with several seeds, and tests the best parameters of each run.

    Args:
        trial: trial that evaluates the test split.
        config: configuration of ``trial``.
        settings: see `EpochTrial`.
        seeds: random seeds of the runs; they should differ from the search's.

    Returns:
        JSON values: ``settings``; ``runs``, each with its seed, epochs, best epoch,
        metrics of that epoch and seconds; ``test``, the mean over the runs of each
        metric that is finite in all, with its 95% confidence interval.
    """
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        run = trial(settings, seed)
        best = config.best_epoch(run.evaluations)
        runs.append(
            {
                "seed": seed,
                "epochs": len(run.evaluations),
                "best_epoch": best,
                "validation": run.evaluations[best - 1].validation,
                "test": run.test,
                "seconds": run.seconds,
            }
        )
    tests: list[dict[str, float]] = [run["test"] for run in runs]
    test = {
        name: dataclasses.asdict(interval(metrics[name] for metrics in tests))
        for name in tests[0]
        if all(math.isfinite(metrics[name]) for metrics in tests)
    }
    return {"settings": dict(settings), "runs": runs, "test": test}


def untuned(base: RunConfig) -> RunConfig:
    """Returns the same run with the learned optimizer, which needs no search.

    It sets clipping and the step size of each tensor itself, and does not receive
    validation metrics.
    """
    optimizer = OptimizerConfig(
        "learned", base.optimizer.num_steps, stacked=base.optimizer.stacked
    )
    defaults = type(base.loop)()
    loop = dataclasses.replace(
        base.loop,
        feedback=False,
        best_metric=defaults.best_metric,
        best_mode=defaults.best_mode,
    )
    return dataclasses.replace(base, optimizer=optimizer, loop=loop)
