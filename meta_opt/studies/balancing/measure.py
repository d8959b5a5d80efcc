"""Trains on one task with and without balancing its modalities."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from meta_opt.finetuning.balancing import OF_LOSSES, BalancingConfig
from meta_opt.finetuning.modality_groups import with_groups
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.step_program import CachedStep
from meta_opt.optimizers.registry import make_optimizer
from meta_opt.studies.finished_runs import FinishedRuns
from meta_opt.workloads.multimodal_inputs import Inputs, read_inputs
from meta_opt.workloads.workload import Workload


@dataclasses.dataclass(frozen=True)
class BalancingStudyConfig:
    """Settings of the compared variants.

    Attributes:
        seeds: random seeds of initialisation and batches.
        alpha: strength of OGM's gradient modulation.
        modality_dropout: dropout rate in the variants with modality dropout.
    """

    seeds: tuple[int, ...] = (1, 2)
    alpha: float = 0.5
    modality_dropout: float = 0.2


@dataclasses.dataclass(frozen=True)
class Variant:
    """The settings of a run that a variant changes.

    Attributes:
        balancing: balancing of modalities or of their losses.
        modality_dropout: dropout rate of modalities.
    """

    balancing: BalancingConfig = dataclasses.field(default_factory=BalancingConfig)
    modality_dropout: float = 0.0

    def of(self, base: RunConfig) -> RunConfig:
        """Returns the run with this variant's settings."""
        workload = dataclasses.replace(
            base.workload, modality_dropout=self.modality_dropout
        )
        return dataclasses.replace(base, workload=workload, balancing=self.balancing)


def variants(config: BalancingStudyConfig) -> dict[str, Variant]:
    """Returns the variants by name.

    >>> list(variants(BalancingStudyConfig()))[:3]
    ['none', 'OGM', 'OGM-GE']
    """
    ogm = BalancingConfig("ogm_ge", alpha=config.alpha, noise=False)
    ogm_ge = dataclasses.replace(ogm, noise=True)
    rate = config.modality_dropout
    return {
        "none": Variant(),
        "OGM": Variant(ogm),
        "OGM-GE": Variant(ogm_ge),
        f"modality dropout {rate:g}": Variant(modality_dropout=rate),
        f"OGM-GE, modality dropout {rate:g}": Variant(ogm_ge, rate),
        **{f"losses, {name}": Variant(BalancingConfig(name)) for name in OF_LOSSES},
    }


def measure(
    base: RunConfig,
    config: BalancingStudyConfig,
    finished: Path,
    announce: Callable[[str], None] = lambda name: None,
) -> Iterator[dict[str, Any]]:
    """Trains each variant with each seed, sequentially.

    Args:
        base: settings of a run on classification of several modalities.
        config: the compared variants.
        finished: JSON file of finished runs, which are not repeated; it is written
            after each run.
        announce: called with the name of each run before it starts.

    Yields:
        For each variant ``name`` and ``runs``: for each seed ``accuracy`` and ``loss``
        on the test split, ``alone`` (by modality, the mean probability of the correct
        class from this modality alone) and ``step_ms`` (mean over the run's steps).

    Raises:
        ValueError: the workload is not a classification of several modalities.
    """
    inputs = read_inputs(base.workload.inputs)
    finished_runs = FinishedRuns(finished, announce)
    for name, variant in variants(config).items():
        varied = variant.of(base)
        one, settings = _Variant(varied, inputs), varied.settings()
        runs = [
            finished_runs.outcome(name, seed, settings, functools.partial(one, seed))
            for seed in config.seeds
        ]
        yield {"name": name, "runs": runs}


class _Variant:
    """Runs a configuration with given seeds; data and programs are built once."""

    def __init__(self, config: RunConfig, inputs: Inputs) -> None:
        self.config, self.inputs = config, inputs
        self.workload: Workload | None = None
        self.step = CachedStep()
        self.alone: Any = None

    def __call__(self, seed: int) -> dict[str, Any]:
        config = self.config
        if self.workload is None:
            self.workload = config.workload.build(seed)
            unimodal = self.workload.unimodal
            if unimodal is None:
                raise ValueError(
                    f"{self.workload.name} does not classify several modalities"
                )
            # Models of all seeds have the same structure, so this is compiled once.
            self.alone = jax.jit(unimodal.fn)
        assert self.workload.reseeded is not None
        workload = self.workload.reseeded(seed)
        assert workload.unimodal is not None and workload.evaluate is not None
        result = run(
            workload,
            make_optimizer(with_groups(config.optimizer, workload)),
            dataclasses.replace(config.loop, seed=seed),
            balancing=config.balancing,
            mesh=config.mesh,
            compile_with=self.step,
        )
        trained = result.state.params, result.state.frozen
        test = workload.evaluate(*trained, "test")
        _, (strengths, examples, _) = self.alone(
            *trained, self.inputs.splits["test"], jax.random.key(0)
        )
        shares = zip(workload.unimodal.names, strengths / examples, strict=True)
        return {
            "accuracy": float(test["accuracy"]),
            "loss": float(test["loss"]),
            "alone": {modality: float(share) for modality, share in shares},
            "step_ms": 1e3 * result.train_seconds / config.loop.num_steps,
        }
