"""Metrics, corruption errors and paired tests from predictions.

All intervals have a confidence level of 95%. With one seed, accuracy has Wilson's
interval; all other intervals are by the bootstrap over examples and, with several
seeds, also over seeds. All models and conditions with the same examples share bootstrap
samples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from meta_opt.data.preprocessing.corruptions import CORRUPTIONS, SEVERITIES
from meta_opt.metrics.classification import (
    class_averages,
    expected_calibration_error,
)
from meta_opt.metrics.corruption_error import mean_corruption_error, mean_error
from meta_opt.metrics.intervals import (
    Interval,
    Resamples,
    percentile_interval,
    resample,
    wilson,
)
from meta_opt.metrics.paired_tests import combine_p_values, mcnemar
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.predictions import Cell, Prediction, cells
from meta_opt.types import near_match

SAMPLES = 2000
_MAX_INFINITE = 0.02

Draw = Callable[[int, int], Resamples]
"""Function of the numbers of examples and seeds that returns bootstrap samples."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference in accuracy to another condition or model on the same examples.

    Attributes:
        accuracy: difference in [-1, 1], with the paired bootstrap's interval.
        p_value: p-value of McNemar's exact test, combined over seeds; None if the two
            do not have the same seeds.
        q_value: p-value adjusted for all tests of the table (Benjamini and Hochberg
            1995); None without a p-value.
    """

    accuracy: Interval
    p_value: float | None
    q_value: float | None = None


@dataclasses.dataclass(frozen=True)
class ConditionRow:
    """Results of a model under a condition, means over its seeds.

    Attributes:
        model: name of the model.
        condition: condition of the test.
        examples: number of examples.
        seeds: number of seeds.
        unread: fraction of answers from which no category could be parsed.
        metrics: metrics of `class_averages`, by name.
        calibration_error: expected calibration error; None without confidences.
        over_reference: difference to `Condition.reference`; None if the reference was
            not tested.
    """

    model: str
    condition: Condition
    examples: int
    seeds: int
    unread: float
    metrics: dict[str, Interval]
    calibration_error: float | None
    over_reference: Difference | None


@dataclasses.dataclass(frozen=True)
class CorruptionRow:
    """A model's errors over all corruptions that were tested at all severities.

    Attributes:
        model: name of the model.
        condition: condition without the corruption.
        corruptions: names of the corruptions.
        incomplete: names of corruptions that lack a severity and are left out.
        error: error rate in [0, 1], mean over severities and corruptions.
        mce: mean corruption error (mCE) relative to the baseline's; None if the
            baseline lacks one of the corruptions, or has no errors under one.
        relative_mce: increase of the error by corruptions, relative to the baseline's
            increase; None as for ``mce``, without a test on clean images, or if
            ``at_chance``.
        at_chance: whether the accuracy of the model or the baseline on clean images is
            not above chance, that is, its interval includes the fraction of the most
            frequent category. Corruptions cannot increase such an error, so the ratio
            would be near 0, as for a robust model, or arbitrary.
    """

    model: str
    condition: Condition
    corruptions: tuple[str, ...]
    incomplete: tuple[str, ...]
    error: Interval
    mce: Interval | None
    relative_mce: Interval | None
    at_chance: bool


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """A model compared with the baseline under one condition.

    Attributes:
        model: name of the model.
        condition: condition of both tests.
        over_baseline: difference to the baseline.
    """

    model: str
    condition: Condition
    over_baseline: Difference


@dataclasses.dataclass(frozen=True)
class Summary:
    """The contents of the report.

    Attributes:
        baseline: name of the model that others are compared with; "" for none.
        conditions: one row for each model and condition.
        corruptions: one row for each model and condition with added corruptions.
        models: one row for each other model and condition of the baseline.
    """

    baseline: str
    conditions: tuple[ConditionRow, ...]
    corruptions: tuple[CorruptionRow, ...]
    models: tuple[ModelRow, ...]


def summarise(
    predictions: Iterable[Prediction],
    baseline: str = "",
    samples: int = SAMPLES,
    seed: int = 0,
) -> Summary:
    """Summarises predictions.

    Args:
        predictions: predictions of all models and conditions.
        baseline: name of the model that others are compared with, also for mCE.
        samples: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Raises:
        ValueError: the baseline has no predictions, compared conditions have different
            examples, or an error of `cells`.
    """
    found = cells(predictions)
    models = list(dict.fromkeys(model for model, _ in found))
    if baseline and baseline not in models:
        raise ValueError(
            f"baseline={baseline!r} has no predictions{near_match(baseline, models)} "
            f"(models: {', '.join(models)})"
        )
    draw = functools.cache(lambda n, s: resample(n, s, samples, seed))
    other_runs = functools.cache(lambda s: resample(1, s, samples, seed + 1).runs)

    def difference(cell: Cell, other: Cell) -> Difference:
        return _difference(cell, other, draw, other_runs)

    rows = []
    for (model, condition), cell in found.items():
        reference = found.get((model, condition.reference or condition))
        rows.append(
            _condition_row(
                cell,
                draw(len(cell.examples), len(cell.seeds)),
                None if reference in (None, cell) else difference(cell, reference),
            )
        )
    compared = [
        ModelRow(model, condition, difference(cell, found[baseline, condition]))
        for (model, condition), cell in found.items()
        if model != baseline and (baseline, condition) in found
    ]
    q_of_rows = _q_values([row.over_reference for row in rows])
    q_of_models = _q_values([row.over_baseline for row in compared])
    return Summary(
        baseline=baseline,
        conditions=tuple(
            dataclasses.replace(row, over_reference=adjusted)
            for row, adjusted in zip(rows, q_of_rows, strict=True)
        ),
        corruptions=tuple(_corruption_rows(found, baseline, draw)),
        models=tuple(
            ModelRow(row.model, row.condition, adjusted)
            for row, adjusted in zip(compared, q_of_models, strict=True)
            if adjusted is not None
        ),
    )


def _condition_row(
    cell: Cell, samples: Resamples, over_reference: Difference | None
) -> ConditionRow:
    points = [class_averages(cell.labels, row) for row in cell.predictions]
    sampled = [
        class_averages(cell.labels, row, samples.examples) for row in cell.predictions
    ]
    metrics = {
        name: percentile_interval(
            float(np.mean([point[name] for point in points])),
            np.einsum("rs,sr->r", samples.runs, [one[name] for one in sampled]),
        )
        for name in points[0]
    }
    if len(cell.seeds) == 1:
        metrics["accuracy"] = wilson(int(cell.correct.sum()), len(cell.examples))
    calibration = None
    if cell.confidences is not None:
        errors = []
        for confidences, correct, predicted in zip(
            cell.confidences, cell.correct, cell.predictions, strict=True
        ):
            if np.any(read := predicted >= 0):
                errors.append(
                    expected_calibration_error(confidences[read], correct[read])
                )
        calibration = float(np.mean(errors))
    return ConditionRow(
        model=cell.model,
        condition=cell.condition,
        examples=len(cell.examples),
        seeds=len(cell.seeds),
        unread=float(np.mean(cell.predictions < 0)),
        metrics=metrics,
        calibration_error=calibration,
        over_reference=over_reference,
    )


def _check_same_examples(cell: Cell, other: Cell) -> None:
    if cell.examples == other.examples:
        return
    different = sorted({*cell.examples} ^ {*other.examples})
    raise ValueError(
        f"model {cell.model!r}, condition {cell.condition.name!r} and model "
        f"{other.model!r}, condition {other.condition.name!r} are compared but do not "
        f"have the same examples; {len(different)} are in one only, such as "
        f"{different[0]!r}"
    )


def _difference(
    cell: Cell, other: Cell, draw: Draw, other_runs: Callable[[int], np.ndarray]
) -> Difference:
    _check_same_examples(cell, other)
    samples = draw(len(cell.examples), len(cell.seeds))
    ours, theirs = cell.correct.astype(float), other.correct.astype(float)
    p_value = None
    if cell.seeds == other.seeds:
        sampled = samples.mean(ours - theirs)
        pairs = zip(cell.correct, other.correct, strict=True)
        p_value = combine_p_values([mcnemar(a, b) for a, b in pairs])
    else:
        # Seeds of different runs are not paired, so they are sampled independently.
        apart = Resamples(samples.examples, other_runs(len(other.seeds)))
        sampled = samples.mean(ours) - apart.mean(theirs)
    estimate = float(ours.mean() - theirs.mean())
    return Difference(percentile_interval(estimate, sampled), p_value)


def _q_values(found: Sequence[Difference | None]) -> list[Difference | None]:
    """Adds q-values for all p-values of one table."""
    from scipy.stats import false_discovery_control

    adjusted = list(found)
    tested = {
        i: one.p_value
        for i, one in enumerate(found)
        if one is not None and one.p_value is not None
    }
    if tested:
        q_values = false_discovery_control(list(tested.values()))
        for (i, p), q in zip(tested.items(), q_values, strict=True):
            adjusted[i] = Difference(found[i].accuracy, p, float(q))  # type: ignore[union-attr]
    return adjusted


def _corruption_rows(
    found: Mapping[tuple[str, Condition], Cell], baseline: str, draw: Draw
) -> list[CorruptionRow]:
    groups = dict.fromkeys(
        (model, condition.uncorrupted)
        for model, condition in found
        if condition.corruption
    )
    rows = []
    for model, condition in groups:
        ours = _errors(found, model, condition, draw)
        started = {
            c.corruption for m, c in found if (m, c.uncorrupted) == (model, condition)
        } - {""}
        incomplete = tuple(sorted(started - set(ours.points)))
        if not ours.points:
            continue
        error = percentile_interval(
            float(mean_error(ours.points)), mean_error(ours.samples)
        )
        mce = relative = None
        at_chance = ours.at_chance
        if baseline:
            theirs = _errors(found, baseline, condition, draw).only(ours.points)
            if set(theirs.points) == set(ours.points):
                if theirs.examples != ours.examples:
                    raise ValueError(
                        f"models {model!r} and {baseline!r} do not have the same "
                        f"examples under corruptions of condition {condition.name!r}"
                    )
                mce = _mce_interval(ours, theirs, clean=False)
                at_chance = at_chance or theirs.at_chance
                tested = ours.clean is not None and theirs.clean is not None
                if tested and not at_chance:
                    relative = _mce_interval(ours, theirs, clean=True)
        rows.append(
            CorruptionRow(
                model=model,
                condition=condition,
                corruptions=tuple(ours.points),
                incomplete=incomplete,
                error=error,
                mce=mce,
                relative_mce=relative,
                at_chance=at_chance,
            )
        )
    return rows


@dataclasses.dataclass(frozen=True)
class _Errors:
    """Top-1 errors of one model by corruption.

    Attributes:
        examples: keys of the examples.
        points: errors at the 5 severities, float [5], by corruption.
        samples: errors in R bootstrap samples, float [5, R], by corruption.
        clean: error without corruption, and in the samples [R]; None if not tested.
        at_chance: whether the accuracy without corruption is not above chance.
    """

    examples: tuple[str, ...]
    points: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    clean: tuple[float, np.ndarray] | None
    at_chance: bool

    def only(self, names: Iterable[str]) -> "_Errors":
        """Returns the errors of the named corruptions only."""
        kept = [name for name in names if name in self.points]
        return dataclasses.replace(
            self,
            points={name: self.points[name] for name in kept},
            samples={name: self.samples[name] for name in kept},
        )


def _errors(
    found: Mapping[tuple[str, Condition], Cell],
    model: str,
    condition: Condition,
    draw: Draw,
) -> _Errors:
    def error(cell: Cell) -> tuple[float, np.ndarray]:
        samples = draw(len(cell.examples), len(cell.seeds))
        return float(np.mean(~cell.correct)), samples.mean(
            (~cell.correct).astype(float)
        )

    points, sampled, used = {}, {}, []
    for name in CORRUPTIONS:
        of_name = [
            found.get(
                (model, dataclasses.replace(condition, corruption=name, severity=s))
            )
            for s in SEVERITIES
        ]
        complete = [cell for cell in of_name if cell is not None]
        if len(complete) == len(SEVERITIES):
            each = [error(cell) for cell in complete]
            points[name] = np.asarray([point for point, _ in each])
            sampled[name] = np.stack([samples for _, samples in each])
            used += complete
    clean = found.get((model, condition))
    if clean is not None:
        used.append(clean)
    for cell in used[1:]:
        _check_same_examples(used[0], cell)
    return _Errors(
        examples=used[0].examples if used else (),
        points=points,
        samples=sampled,
        clean=None if clean is None else error(clean),
        at_chance=clean is not None and _at_chance(clean, error(clean)),
    )


def _at_chance(cell: Cell, error: tuple[float, np.ndarray]) -> bool:
    """Whether the accuracy is not significantly above that of a constant answer."""
    chance = np.bincount(cell.labels).max() / len(cell.labels)
    if len(cell.seeds) == 1:
        accuracy = wilson(int(cell.correct.sum()), len(cell.examples))
    else:
        accuracy = percentile_interval(1 - error[0], 1 - error[1])
    return accuracy.low is None or bool(accuracy.low <= chance)


def _mce_interval(ours: _Errors, theirs: _Errors, clean: bool) -> Interval | None:
    """Returns mCE, or relative mCE if ``clean``; None if the baseline has no errors."""
    (a, a_samples), (b, b_samples) = (
        x.clean if clean and x.clean is not None else (0.0, np.zeros(()))
        for x in (ours, theirs)
    )
    estimate = float(mean_corruption_error(ours.points, theirs.points, a, b))
    sampled = mean_corruption_error(ours.samples, theirs.samples, a_samples, b_samples)
    if not math.isfinite(estimate):
        return None
    # The ratio is infinite in samples in which the baseline has no (added) error. If
    # there are few of them, they are outside of the interval.
    infinite = ~np.isfinite(sampled)
    if np.mean(infinite) > _MAX_INFINITE:
        return Interval(estimate, None, None)
    return percentile_interval(estimate, np.where(infinite, np.inf, sampled))
