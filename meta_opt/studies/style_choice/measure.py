"""Scores of weights near the shipped ones on all meta-training families."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from meta_opt.meta_training.family_scores import REFERENCES, Families, read_or
from meta_opt.meta_training.family_scores_config import FamilyScoresConfig
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.weights import load_theta
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.run_log import progress_bar, write_config
from meta_opt.tasks.task import Task
from meta_opt.text_files import write_json
from meta_opt.types import PyTree, check_distinct, check_name, from_config


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Weights that are a modification of shipped ones.

    Attributes:
        name: name in the table.
        share: factor of all output weights; 0 is the hand-designed rule.
        change: values added to direct weights, by names such as ``constant>step``.
    """

    name: str
    share: float = 1.0
    change: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def theta(self, start: PyTree, config: ControllerConfig) -> PyTree:
        """Returns the modified weights.

        Args:
            start: shipped weights.
            config: configuration of the controller.

        Raises:
            ValueError: an unknown feature or output in ``change``.
        """
        output = jax.tree.map(lambda x: self.share * x, start["output"])
        shared = {**start, "output": output}
        if not self.change:
            return shared
        parts = Parametrisation(shared, config, tuple(self.change))
        return parts.theta(jnp.array(list(self.change.values()), jnp.float32))


@dataclasses.dataclass(frozen=True)
class StyleChoiceConfig:
    """Candidates and their evaluation.

    Attributes:
        weights: shipped name or path of the weights that candidates modify.
        candidates: fields of each `Candidate`.
        styles: families of each style.
        num_steps: AdamW's steps by family; the default is the family's larger horizon.
        seeds: number of inner runs for each candidate and family.
        reference_seeds: number of inner runs for each setting of AdamW.
        budgets: run lengths of candidates as fractions of AdamW's steps.
        rates: learning rates of AdamW; the best one is the reference.
        decays: weight decays of AdamW.
        error_weight: weight of the error rate at the full budget, added to the log
            loss.
        worst_weight: weight of the mean over the worst fifth of the families.
        workers: number of processes that share the families; 0 uses this process.
    """

    weights: str
    candidates: tuple[Mapping[str, Any], ...]
    styles: Mapping[str, Sequence[str]]
    num_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seeds: int = 2
    reference_seeds: int = 1
    budgets: tuple[float, ...] = (1.0, 0.5)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    decays: tuple[float, ...] = (1e-2,)
    error_weight: float = 2.0
    worst_weight: float = 0.5
    workers: int = 0

    def __post_init__(self) -> None:
        """Checks names.

        Raises:
            ValueError: no candidates, two candidates with the same name, fewer than two
                styles, a style without families, or a family in two styles.
        """
        names = [candidate.name for candidate in self.read_candidates()]
        if not names:
            raise ValueError("candidates is empty; name at least one")
        check_distinct("candidates", names)
        if len(self.styles) < 2:
            raise ValueError(f"styles={dict(self.styles)} must have two or more styles")
        if empty := [name for name, each in self.styles.items() if not each]:
            raise ValueError(f"styles {', '.join(empty)} have no families")
        check_distinct("styles", self.families)

    @property
    def families(self) -> tuple[str, ...]:
        """Families of all styles."""
        return tuple(family for each in self.styles.values() for family in each)

    def read_candidates(self) -> tuple[Candidate, ...]:
        """Returns the candidates, in order."""
        return tuple(
            from_config(Candidate, fields, f"candidates[{i}]")
            for i, fields in enumerate(self.candidates)
        )

    def evaluation(self, controller: ControllerConfig) -> FamilyScoresConfig:
        """Returns evaluation settings, the same as in the search of direct weights."""
        return FamilyScoresConfig(
            families=self.families,
            num_steps=self.num_steps,
            seeds=self.seeds,
            reference_seeds=self.reference_seeds,
            budgets=self.budgets,
            rates=self.rates,
            decays=self.decays,
            error_weight=self.error_weight,
            controller=controller,
            worst_weight=self.worst_weight,
            workers=self.workers,
            side_by_side=False,
        )


def score(
    config: StyleChoiceConfig, family: str, name: str, make: Callable[[str], Task]
) -> float:
    """Returns the score of one candidate on one family, the same as in `measure`.

    Args:
        config: settings.
        family: name of the family.
        name: name of the candidate.
        make: builds the task of a family.

    Raises:
        ValueError: an unknown family or candidate.
    """
    start, controller = load_theta(config.weights)
    check_name("family", family, config.families)
    candidates = {one.name: one for one in config.read_candidates()}
    check_name("candidate", name, candidates)
    evaluation = dataclasses.replace(
        config.evaluation(controller),
        families=(family,),
        num_steps={k: v for k, v in config.num_steps.items() if k == family},
    )
    with tempfile.TemporaryDirectory() as folder:
        families = Families(evaluation, make, Path(folder), show_progress=False)
        with contextlib.closing(families):
            theta = candidates[name].theta(start, controller)
            ((_, (found,)),) = families.scores_by_family([family], [theta], 0)
    return found


def measure(
    config: StyleChoiceConfig,
    make: Callable[[str], Task],
    workdir: str | Path,
    show_progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Scores every candidate on every family with the same seeds.

    Scores of finished families are stored in ``scores.json``; a rerun resumes after the
    last one.

    Args:
        config: settings.
        make: builds the task of a family; with ``workers`` it is pickled.
        workdir: folder for ``scores.json``, ``references.json`` (AdamW's results) and
            the resolved config.
        show_progress: whether to show progress bars.

    Returns:
        ``scores[family][candidate]``, see `meta_objective`: 0 means as good as AdamW
        with its best rate; lower is better.

    Raises:
        ValueError: unknown weights, direct weights or families, or another run uses
            ``workdir``.
    """
    start, controller = load_theta(config.weights)
    candidates = config.read_candidates()
    thetas = [candidate.theta(start, controller) for candidate in candidates]
    folder = Path(workdir)
    with hold_workdir(folder):
        path = folder / "scores.json"
        # AdamW's stored results depend on the settings too.
        begun = path.is_file() or (folder / REFERENCES).is_file()
        write_config(folder, dataclasses.asdict(config), resuming=begun)
        found: dict[str, dict[str, float]] = read_or(path, {})
        missing = [name for name in config.families if name not in found]
        if missing:
            names = [candidate.name for candidate in candidates]
            families = Families(
                config.evaluation(controller), make, folder, show_progress
            )
            bar = progress_bar(
                len(config.families),
                start=len(found),
                label="families",
                show=show_progress,
            )
            with contextlib.closing(families), contextlib.closing(bar):
                for name, scores in families.scores_by_family(missing, thetas, 0):
                    found[name] = dict(zip(names, scores, strict=True))
                    write_json(path, found, indent=1)
                    bar.update()
    return {name: found[name] for name in config.families}
