"""Ratios of costs of measured cells, and their points of the cost model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from meta_opt.studies.meltr_throughput.cases import DEFAULT_METHOD, Case
from meta_opt.studies.meltr_throughput.cost_model import CostModel, HeldOut, Point, fit
from meta_opt.studies.meltr_throughput.programs import META, STEPS
from meta_opt.studies.meltr_throughput.subjects import MODELS
from meta_opt.types import from_config

OPERATIONS, TIME = "operations", "milliseconds"
"""Units of the costs of a cell's programs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A measured case.

    Attributes:
        name: name of the cell.
        case: the measured case.
        record: results, see `meta_opt.studies.meltr_throughput.measure.measure`.
    """

    name: str
    case: Case
    record: Mapping[str, Any]

    def costs(self, unit: str) -> dict[str, float]:
        """Returns costs by program; empty if there are none in this unit."""
        if unit == TIME:
            return dict(self.record.get("milliseconds", {}))
        return {k: v["flops"] for k, v in self.record["programs"].items()}

    def point(self, interval: int, unit: str = OPERATIONS) -> Point:
        """Returns the cell as a point of the cost model at interval K."""
        costs = self.costs(unit)
        steps = {name: costs[name] for name in STEPS}
        meta = sum(costs.get(name, 0.0) for name in META)
        case = self.case
        return Point(case.model, case.num_losses, interval, **steps, meta=meta)

    def meta_ratio(self, unit: str = OPERATIONS) -> float:
        """Returns the cost of a meta-step relative to MELTR's base step."""
        point = self.point(1, unit)
        return point.meta / point.meltr

    def peak(self, *programs: str) -> int:
        """Returns the peak memory of a device over programs that run sequentially."""
        found = self.record["programs"]
        return max(found[p]["peak_bytes"] for p in programs if p in found)

    @property
    def memory_ratio(self) -> float:
        """Peak memory of MELTR, including meta-steps, relative to equal weights."""
        return self.peak("meltr", *META) / self.peak("equal")

    def sent(self, *programs: str) -> float:
        """Returns the bytes that collectives of programs return to each device."""
        return float(self._sum("collective_bytes", programs))

    def messages(self, *programs: str) -> int:
        """Returns the number of collectives of programs."""
        return int(self._sum("collectives", programs))

    def device_flops(self, *programs: str) -> float:
        """Returns the operations of one device in programs.

        They are counted in compiled programs for CPU. Programs for TPU do not state
        them, so an equal share of the traced operations is returned.
        """
        if self.case.topology:
            return self._sum("flops", programs) / self.case.count
        return self._sum("dot_flops", programs)

    def _sum(self, key: str, programs: Sequence[str]) -> float:
        found = self.record["programs"]
        return sum(found[p][key] for p in programs if p in found)


def read_cells(records: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Reads cells from stored records."""
    return [
        Measured(r["name"], from_config(Case, r["case"], r["name"]), r) for r in records
    ]


def plain(
    cells: Sequence[Measured], unit: str = OPERATIONS, method: str = DEFAULT_METHOD
) -> list[Measured]:
    """Selects cells of full training on one local device, one per model and T.

    Args:
        cells: all cells.
        unit: unit that the cells must have costs in.
        method: method of the meta-steps.

    Returns:
        The cells ordered by model and T.
    """
    found: dict[tuple[str, int], Measured] = {}
    for cell in cells:
        case = cell.case
        usual = case.trainable == "all" and case.method == method
        if not case.topology and case.devices == 1 and usual and cell.costs(unit):
            found.setdefault((case.model, case.num_losses), cell)
    return [found[case] for case in sorted(found, key=_by_model)]


def _by_model(case: tuple[str, int]) -> tuple[int, int]:
    model, num_losses = case
    return MODELS.index(model), num_losses


def compiled(cells: Sequence[Measured]) -> list[Measured]:
    """Selects compiled cells, whose memory and communication are known."""
    return [c for c in cells if c.record["programs"]["equal"]["peak_bytes"] is not None]


def over_devices(cells: Sequence[Measured]) -> list[Measured]:
    """Selects compiled multi-device cells: local devices first, then topologies."""
    found = [c for c in compiled(cells) if c.case.count > 1]
    return sorted(found, key=lambda c: (c.case.topology, c.case.count))


def on_one_device(cell: Measured, cells: Sequence[Measured]) -> Measured | None:
    """Returns the compiled cell with the same settings on one local device.

    It is None if there is no such cell, or if the cell is for a topology.
    """
    if cell.case.topology:
        return None
    case = dataclasses.replace(cell.case, devices=1)
    return next((c for c in compiled(cells) if c.case == case), None)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The fitted cost model, with points for fitting and evaluation.

    Attributes:
        model: coefficients.
        fitted: points of the fit.
        held_out: points with other models, T or K, for evaluation.
        timed: points of timed cells, in milliseconds.
    """

    model: CostModel
    fitted: tuple[Point, ...]
    held_out: tuple[Point, ...]
    timed: tuple[Point, ...]

    @property
    def unitless(self) -> CostModel:
        """The model for another unit of cost, without coefficients that have a unit."""
        return dataclasses.replace(self.model, combiner=0.0, constant=0.0)


def fitted(
    cells: Sequence[Measured], intervals: Sequence[int], held_out: HeldOut
) -> Fit | None:
    """Fits the cost model to operations; None if there are too few cells."""
    points = [c.point(k) for c in plain(cells) for k in intervals]
    kept = [p for p in points if not held_out.holds(p)]
    if len({(p.model, p.num_losses) for p in kept}) < 3:
        return None
    timed = [c.point(k, TIME) for c in plain(cells, TIME) for k in intervals]
    return Fit(
        fit(kept),
        tuple(kept),
        tuple(p for p in points if held_out.holds(p)),
        tuple(timed),
    )
