"""A study's finished phases: accuracies with intervals, costs, published results."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meta_opt.finetuning.accuracy_cost import PointCost, cost_of_accuracy
from meta_opt.finetuning.ledger import LEDGER, Amounts, Ledger, Prices, read_ledger
from meta_opt.metrics.intervals import wilson
from meta_opt.studies.progressive.phases import RECORD, STOPPED
from meta_opt.studies.progressive.study import ZERO_SHOT
from meta_opt.text_files import read_json
from meta_opt.types import from_config

WAYS = ("answers", "likelihood")
"""Ways of predicting a class: parsing the generated text, or the most likely answer."""

PUBLISHED: Mapping[int, Mapping[str, tuple[tuple[float, float] | None, ...]]] = (
    MappingProxyType(
        {
            100: {
                "large model": ((0.700, 0.694),),
                "small model": (
                    *((0.656, 0.635), (0.772, 0.755), (0.811, 0.793)),
                    *((0.811, 0.807), (0.856, 0.846)),
                ),
                "ResNet-50": (None, None, None, None, (0.339, 0.328)),
                "ConvNeXt-tiny": (None, None, None, None, (0.500, 0.472)),
            },
            200: {
                "large model": ((0.733, 0.718),),
                "small model": (
                    *((0.672, 0.664), (0.806, 0.794), (0.850, 0.849)),
                    *((0.861, 0.856), (0.844, 0.841)),
                ),
                "ResNet-50": (None, None, None, None, (0.483, 0.458)),
                "ConvNeXt-tiny": (None, None, None, None, (0.561, 0.546)),
            },
            400: {
                "large model": ((0.750, 0.739),),
                "small model": (
                    *((0.661, 0.664), (0.844, 0.833), (0.861, 0.859)),
                    *((0.878, 0.872), (0.867, 0.862)),
                ),
                "ResNet-50": (None, None, None, None, (0.589, 0.572)),
                "ConvNeXt-tiny": (None, None, None, None, (0.600, 0.579)),
            },
        }
    )
)
"""Accuracy and weighted F1 on 180 test images by width, from zero-shot to phase 4
(Roumeliotis et al. 2025, IEEE Access); the networks were trained on all phases at
once."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished phase.

    Attributes:
        phase: number of the phase; 0 for zero-shot.
        record: contents of ``phase.json``.
        ledger: cost ledger in the phase's folder; empty if there is none.
    """

    phase: int
    record: Mapping[str, Any]
    ledger: Ledger = dataclasses.field(default_factory=Ledger)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"phase {self.phase}" if self.phase else "zero-shot"

    def metric(self, name: str, way: str = "answers", split: str = "test") -> float:
        """Returns a metric, see `Predictions.metrics` in ``predictions.py``."""
        return float(self.record["metrics"][split][way][name])

    def interval(
        self, way: str = "answers", split: str = "test"
    ) -> tuple[float, float]:
        """Returns Wilson's 95% interval of the accuracy over the split's examples.

        >>> metrics = {"test": {"answers": {"accuracy": 0.8}}}
        >>> low, high = Outcome(
        ...     1, {"metrics": metrics, "examples": {"test": 180}}
        ... ).interval()
        >>> round(low, 3), round(high, 3)
        (0.736, 0.852)
        """
        count = self.record["examples"][split]
        right = round(self.metric("accuracy", way, split) * count)
        _, low, high = dataclasses.astuple(wilson(right, count))
        return low, high

    def last(self, curve: str) -> float | None:
        """Returns the last ``train_loss`` or ``validation_loss``; None without one."""
        points = self.record.get(curve) or [[0, None]]
        return points[-1][1]

    def prediction(self) -> Amounts:
        """Returns the cost of generating one answer; all None if not measured."""
        if "prediction" not in self.record:
            return Amounts()
        given = self.record["prediction"]
        amounts = from_config(Amounts, given["amounts"], "prediction.amounts")
        ledger = Ledger().add(self.name, "prediction", amounts, given["count"])
        return ledger.each("prediction")


@dataclasses.dataclass(frozen=True)
class Arm:
    """The phases of one track, including zero-shot.

    Attributes:
        name: name of the track: names of the optimizer and of the policy, if any.
        outcomes: outcomes of consecutive phases.
        stopped: reason for which the policy stopped; "" if it did not.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    stopped: str = ""

    def ledger(self) -> Ledger:
        """Returns the ledger of all phases, each under its own name."""
        entries = tuple(
            dataclasses.replace(entry, name=outcome.name)
            for outcome in self.outcomes
            for entry in outcome.ledger.entries
        )
        return Ledger(_prices(self.outcomes), entries)

    def costs(self, way: str = "answers") -> list[PointCost]:
        """Returns the cost of each phase, and per percentage point of test accuracy.

        Empty without phases, or if the training of a phase was not measured.
        """
        start, *phases = self.outcomes
        ledger = self.ledger()
        measured = {e.name for e in ledger.entries if e.kind == "training"}
        if not phases or not {o.name for o in phases} <= measured:
            return []
        accuracies = {o.name: o.metric("accuracy", way) for o in phases}
        return cost_of_accuracy(ledger, accuracies, start.metric("accuracy", way))


def _prices(outcomes: Sequence[Outcome]) -> Prices:
    """Returns the prices of the latest phase with a ledger, used for all phases."""
    found = [o.ledger.prices for o in outcomes if o.ledger.entries]
    return found[-1] if found else Prices()


def read_arms(
    workdir: str | Path,
    tracks: Sequence[str],
    count: int,
    prices: Prices | None = None,
) -> list[Arm]:
    """Reads the finished phases of a study's folder.

    Args:
        workdir: folder of the study.
        tracks: names of the tracks, in order.
        count: maximum number of phases of a track.
        prices: prices for all phases; if it is None or has no price, the prices at the
            time of the runs are used.

    Returns:
        An arm for each track, up to its first unfinished phase; none if zero-shot is
        not finished.

    Raises:
        ValueError: damaged files; the message names them.
    """
    workdir = Path(workdir)
    current = None if prices is None or prices.empty else prices
    start = _outcome(workdir / ZERO_SHOT, 0, current)
    if start is None:
        return []
    arms = []
    for name in tracks:
        outcomes = [start]
        for phase in range(1, count + 1):
            folder = workdir / name / f"phase_{phase}"
            found = _outcome(folder, phase, current)
            if found is None:
                break
            outcomes.append(found)
        path = workdir / name / STOPPED
        stopped = str(read_json(path).get("reason", "")) if path.is_file() else ""
        arms.append(Arm(name, tuple(outcomes), stopped))
    return arms


def _outcome(folder: Path, phase: int, prices: Prices | None) -> Outcome | None:
    if not (folder / RECORD).is_file():
        return None
    record = read_json(folder / RECORD)
    if lacking := {"metrics", "examples"} - record.keys():
        raise ValueError(f"{folder / RECORD} is damaged: it lacks {sorted(lacking)}")
    ledger = read_ledger(folder) if (folder / LEDGER).is_file() else Ledger()
    if prices is not None:
        ledger = dataclasses.replace(ledger, prices=prices)
    return Outcome(phase, record, ledger)
