"""Video-text runs with fewer visual tokens: metrics, operations, step times."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from meta_opt.finetuning.planning import product_flops
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.trial import Trial
from meta_opt.models.token_pruning import PruningConfig
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.studies.finished_runs import FinishedRuns
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Workload


@dataclasses.dataclass(frozen=True)
class TokenPruningConfig:
    """Settings of the compared variants.

    Attributes:
        kept_shares: fractions of kept patches; 1 prunes nothing.
        relevant_share: fraction of the kept tokens that are selected by relevance to
            the text, in an additional variant for each kept share below 1; 1 for no
            such variants.
        seeds: random seeds of the runs.
        rounds: number of timed steps of each variant, in turns.
        metrics: names of the reported test metrics.
    """

    kept_shares: tuple[float, ...] = (1.0, 0.5, 0.2)
    relevant_share: float = 1.0
    seeds: tuple[int, ...] = (0, 1)
    rounds: int = 15
    metrics: tuple[str, ...] = ("loss", "t2v_r1", "t2v_r5", "t2v_r10")


def variants(config: TokenPruningConfig, base: PruningConfig) -> dict[str, Any]:
    """Returns pruning settings by name; the first one keeps whole frames."""
    patches = dataclasses.replace(base, tokens="patches")
    found = {"whole frames": PruningConfig()}
    for share in config.kept_shares:
        pruning = dataclasses.replace(patches, kept_share=share)
        found[f"{100 * share:.0f}% of the patches"] = pruning
        if share < 1 and config.relevant_share < 1:
            name = f"{100 * share:.0f}%, {100 * config.relevant_share:.0f}% of them"
            found[f"{name} by text"] = dataclasses.replace(
                pruning, relevant_share=config.relevant_share
            )
    return found


def measure(
    run: RunConfig,
    config: TokenPruningConfig,
    medians: Callable[[Mapping[str, Callable[[], Any]], int], Mapping[str, float]],
    finished: Path,
    announce: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Trains and times each variant.

    Args:
        run: settings of a video-text run; its pruning section has the thresholds.
        config: the compared variants.
        medians: ``(calls by name, rounds) -> median milliseconds``, calling in turns.
        finished: JSON file of the test metrics of finished runs, which are not
            repeated; it is written after each run.
        announce: called with the name of each run before it starts.

    Returns:
        For each variant: ``name``; ``tokens``, the number of tokens of a clip;
        ``test``, metrics by name for each seed; ``flops``, operations of the matrix
        products of a gradient; and ``step_ms``.
    """
    trials = {}
    for name, pruning in variants(config, run.workload.model.pruning).items():
        model = dataclasses.replace(run.workload.model, pruning=pruning)
        workload = dataclasses.replace(run.workload, model=model)
        trials[name] = Trial(dataclasses.replace(run, workload=workload))
    steppers, rows = {}, []
    for name, trial in trials.items():
        announce(f"{name}: compile")
        steppers[name] = trial.stepper(run.optimizer)
        facts = trial.workload.describe()
        rows.append(
            {
                "name": name,
                "tokens": facts.get("visual_tokens", run.workload.clips.frames),
                "flops": _flops(trial.workload, run.loop.batch_size),
            }
        )
    announce("time")
    times = medians(steppers, config.rounds)
    finished_runs = FinishedRuns(finished, announce)
    for row in rows:
        name = row["name"]
        trial, row["step_ms"] = trials[name], times[name]
        settings = trial.base.settings()
        row["test"] = []
        for seed in config.seeds:
            one = functools.partial(_test, trial, run.optimizer, seed)
            test = finished_runs.outcome(name, seed, settings, one)
            row["test"].append({m: test[m] for m in config.metrics})
    return rows


def _test(trial: Trial, optimizer: OptimizerConfig, seed: int) -> Mapping[str, float]:
    return trial(optimizer, seed).test


def _flops(workload: Workload, batch_size: int) -> float:
    batch = next(workload.train_batches(batch_size, 0))

    def loss(params: PyTree) -> jax.Array:
        return workload.loss_fn(params, workload.frozen, batch, jax.random.key(0))[0]

    return product_flops(jax.grad(loss), workload.params)
