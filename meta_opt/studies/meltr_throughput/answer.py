"""A one-paragraph summary of the study, computed from the measured cells."""

from collections.abc import Iterable, Sequence

from meta_opt.studies.meltr_throughput.bars import BARS, CHEAPER
from meta_opt.studies.meltr_throughput.cases import DEFAULT_METHOD, METHODS
from meta_opt.studies.meltr_throughput.programs import META
from meta_opt.studies.meltr_throughput.summary import (
    TIME,
    Fit,
    Measured,
    compiled,
    on_one_device,
    over_devices,
    plain,
)


def answer(cells: Sequence[Measured], found: Fit | None) -> str:
    """Summarises how MELTR's cost depends on losses, model and devices.

    Args:
        cells: measured cells; without any cell of full training on one local device
            there is no summary.
        found: fitted cost model; None if there is none.
    """
    every = plain(cells)
    if not every:
        return "Nothing is measured yet."
    text = [
        _interval(every),
        _growth(every),
        _models(every),
        _devices(cells),
        _memory(cells),
        _cheaper(cells),
        _hypergradients(cells),
        _times(plain(cells, TIME)),
        _formula(found),
    ]
    return " ".join(filter(None, text))


def _interval(cells: Sequence[Measured]) -> str:
    own = [c.point(1).meltr / c.point(1).equal - 1 for c in cells]
    costs = " and ".join(
        f"{_range(1 + c.point(k).overhead for c in cells)} times at K={k}"
        for k in sorted(BARS)
    )
    return (
        "The interval K of meta-steps sets what learned loss combination costs in "
        "training throughput; the number of losses, the model and the devices change "
        "it little. In operations "
        f"MELTR's own network adds at most {100 * max(own):.1f}% to a step, and a "
        f"meta-step costs {_range(c.meta_ratio() for c in cells)} base steps: "
        f"{costs} a step with equal weights, over {len(cells)} pairs of model and "
        "number of losses."
    )


def _growth(cells: Sequence[Measured]) -> str:
    """Describes the effect of the number of losses, from each model's least to most."""
    ends = []
    for model in dict.fromkeys(c.case.model for c in cells):
        of_model = [c.point(10) for c in cells if c.case.model == model]
        if of_model[0].num_losses < of_model[-1].num_losses:
            ends.append((of_model[0], of_model[-1]))
    if not ends:
        return ""
    few, many = zip(*ends, strict=True)
    shared = _range(p.equal / p.primary for p in many)
    over_equal = [_range(1 + p.overhead for p in some) for some in (few, many)]
    over_standard = [
        _range((1 + p.overhead) * p.equal / p.primary for p in some)
        for some in (few, many)
    ]
    return (
        f"Losses: from the fewest to the most of each of {len(ends)} models a step "
        f"with equal weights becomes {shared} times standard fine-tuning, which MELTR "
        f"shares; its cost over equal weights at K=10 is {over_equal[0]} under "
        f"the fewest and {over_equal[1]} under the most, and over standard fine-tuning "
        f"{over_standard[0]} and {over_standard[1]}."
    )


def _models(cells: Sequence[Measured]) -> str:
    """Describes the effect of the model's size with a single loss."""
    alone = [c for c in cells if c.case.num_losses == 1]
    if len(alone) < 2:
        return ""
    first, last = alone[0], alone[-1]
    growth = last.point(1).equal / first.point(1).equal
    return (
        f"Model: from {first.case.model} to {last.case.model} a step under one loss "
        f"has {growth:,.0f} times the operations, and MELTR's cost at K=10 goes from "
        f"{1 + first.point(10).overhead:.3f} to {1 + last.point(10).overhead:.3f}."
    )


def _devices(cells: Sequence[Measured]) -> str:
    over = over_devices(cells)
    local = [c for c in over if not c.case.topology]
    text = []
    if local:
        most = local[-1]
        one = on_one_device(most, cells)
        if one is not None:
            shares = [
                most.device_flops(*p) / one.device_flops(*p)
                for p in (("equal",), ("meltr",), META)
            ]
            text.append(
                f"over {most.case.count} devices each does {_range(shares, 3)} of the "
                f"operations of one ({1 / most.case.count:.3f} is an equal share)"
            )
    if over:
        meta = _range(c.sent(*META) / c.sent("equal") for c in over)
        usual = _range(
            (c.sent("meltr") + c.sent(*META) / 10) / c.sent("equal") for c in over
        )
        text.append(
            f"a meta-step sends {meta} times the bytes of a step with equal weights, "
            f"which makes {usual} times at K=10 ({_places(over)})"
        )
    return f"Devices: {'; '.join(text)}." if text else ""


def _memory(cells: Sequence[Measured]) -> str:
    found = [
        f"{c.memory_ratio:.2f} ({c.case.label})"
        for c in compiled(cells)
        if c.case.method == DEFAULT_METHOD and c.case.devices == 1
    ]
    return f"Peak memory over equal weights: {', '.join(found)}." if found else ""


def _cheaper(cells: Sequence[Measured]) -> str:
    found = []
    for method, label in CHEAPER.items():
        of_method = plain(cells, method=method)
        if of_method:
            each = (
                f"{_range(1 + c.point(k).overhead for c in of_method)} at K={k}"
                for k in sorted(BARS)
            )
            found.append(f"with {label} it is {' and '.join(each)}")
    return f"Smaller meta-batches: {'; '.join(found)}." if found else ""


def _hypergradients(cells: Sequence[Measured]) -> str:
    """Describes the cost of meta-steps by hypergradient, on full batches.

    The model is the one that was measured with the most methods.
    """
    by_model: dict[tuple[str, int], dict[str, float]] = {}
    for method, (_, _, divisor) in METHODS.items():
        for cell in plain(cells, method=method) if divisor == 1 else ():
            case = (cell.case.model, cell.case.num_losses)
            by_model.setdefault(case, {})[method] = cell.meta_ratio()
    (model, count), costs = max(by_model.items(), key=lambda x: len(x[1]))
    if len(costs) < 2:
        return ""
    each = ", ".join(
        f"{name} {costs[name]:.2f}" for name in sorted(costs, key=lambda n: costs[n])
    )
    return (
        f"By hypergradient a meta-step of {model}, T={count}, costs {each} base steps."
    )


def _times(cells: Sequence[Measured]) -> str:
    if not cells:
        return ""
    return (
        "In measured time the cost at K=10 is "
        f"{_range(1 + c.point(10, TIME).overhead for c in cells)} times equal weights "
        f"({_places(cells)})."
    )


def _formula(found: Fit | None) -> str:
    if found is None or not found.held_out:
        return ""
    worst = max(found.model.step_error(p) for p in found.held_out)
    return (
        "A formula of the model's own cost, T and K predicts the cost of a step in "
        f"cases that it was not fitted to within {100 * worst:.1f}%."
    )


def _places(cells: Iterable[Measured]) -> str:
    return "; ".join(c.case.label for c in cells)


def _range(values: Iterable[float], digits: int = 2) -> str:
    """Formats minimum and maximum, as one number if they round to the same."""
    values = list(values)
    return " to ".join(
        dict.fromkeys(f"{v:.{digits}f}" for v in (min(values), max(values)))
    )
