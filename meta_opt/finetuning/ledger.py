"""Costs of phases, trials and predictions: time, operations, bytes, tokens, energy.

An amount that was not measured is None, and so is every sum that includes it. A ledger
is immutable: adding an entry returns a new one.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meta_opt.data.token_counts import TokenCounter
from meta_opt.finetuning.energy import EnergyMeter
from meta_opt.text_files import read_json, write_json
from meta_opt.types import check_name, from_config

LEDGER = "ledger.json"
"""Name of the file in a run's directory, beside ``result.json``."""
KINDS = ("training", "validation", "prediction", "other")
"""Kinds of entries."""
AMOUNTS = (
    "seconds",
    "device_seconds",
    "flops",
    "bytes_read",
    "tokens_in",
    "tokens_out",
    "joules",
)
"""Names of the fields of `Amounts`."""


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices in one currency.

    Attributes:
        currency: currency such as ``USD``; required if there is a price.
        device_hour: price of an hour of one device; None if it costs nothing.
        thousand_tokens_in: price of 1,000 input tokens; None if they cost nothing.
        thousand_tokens_out: price of 1,000 output tokens; None if they cost nothing.
        kilowatt_hour: price of energy; None if it costs nothing.
    """

    currency: str = ""
    device_hour: float | None = None
    thousand_tokens_in: float | None = None
    thousand_tokens_out: float | None = None
    kilowatt_hour: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for prices without a currency and for negative prices.

        >>> Prices(device_hour=2.5)
        Traceback (most recent call last):
        ValueError: currency is empty: device_hour=2.5 needs one, such as USD
        """
        for name, price in self._given().items():
            if not (math.isfinite(price) and price >= 0):
                raise ValueError(f"{name}={price} must be a finite number of 0 or more")
            if not self.currency.strip():
                raise ValueError(
                    f"currency is empty: {name}={price} needs one, such as USD"
                )

    @property
    def empty(self) -> bool:
        """Whether there is no price; a currency alone is none.

        >>> Prices("USD").empty, Prices("USD", device_hour=2.0).empty
        (True, False)
        """
        return not self._given()

    def _given(self) -> dict[str, float]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["currency"]
        return {name: price for name, price in values.items() if price is not None}

    def money(self, amounts: "Amounts") -> float | None:
        """Returns the cost; None without prices or if a priced amount is unknown.

        >>> prices = Prices("USD", device_hour=3.6, thousand_tokens_in=0.5)
        >>> prices.money(Amounts(device_seconds=1000.0, tokens_in=2000))
        2.0
        """
        units = {
            "device_hour": ("device_seconds", 3600),
            "thousand_tokens_in": ("tokens_in", 1000),
            "thousand_tokens_out": ("tokens_out", 1000),
            "kilowatt_hour": ("joules", 3.6e6),
        }
        given, parts = self._given(), []
        for name, price in given.items():
            amount, unit = units[name]
            if (count := getattr(amounts, amount)) is None:
                return None
            parts.append(price * count / unit)
        return math.fsum(parts) if parts else None


@dataclasses.dataclass(frozen=True)
class Amounts:
    """Amounts of time, work and energy; None if not measured.

    Attributes:
        seconds: wall-clock time.
        device_seconds: seconds times the number of allocated devices.
        flops: floating-point operations of all devices.
        bytes_read: bytes of data read from files.
        tokens_in: tokens of the texts that a model was given: prompts, and in training
            and validation right answers and captions too. 0 without texts.
        tokens_out: generated tokens.
        joules: energy in joules, as far as the machine measures it.
    """

    seconds: float | None = None
    device_seconds: float | None = None
    flops: float | None = None
    bytes_read: float | None = None
    tokens_in: float | None = None
    tokens_out: float | None = None
    joules: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for amounts that are negative or not finite."""
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} must be a finite number of 0 or more")

    def known(self) -> dict[str, float]:
        """Returns the measured amounts by name."""
        values = {name: getattr(self, name) for name in AMOUNTS}
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a ledger.

    Attributes:
        name: name of the phase, trial or run.
        kind: one of `KINDS`.
        amounts: time, work and energy.
        count: number of items, such as predictions.
    """

    name: str
    kind: str
    amounts: Amounts
    count: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown kind, an empty name, or a count below 1."""
        check_name("kind", self.kind, KINDS)
        if not self.name.strip():
            raise ValueError("an entry of a ledger needs a name")
        if self.count < 1:
            raise ValueError(f"count={self.count} of {self.name!r} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Entries with their prices.

    Attributes:
        prices: prices that apply to all entries.
        entries: entries in the order in which they were added.
        energy_sources: names of the energy counters, see `EnergyMeter`.

    Example:
        >>> ledger = Ledger(Prices("USD", device_hour=3.6))
        >>> ledger = ledger.add("phase 1", "training", Amounts(60.0, 480.0))
        >>> ledger = ledger.add("phase 1", "prediction", Amounts(2.0, 16.0), count=180)
        >>> ledger.total(name="phase 1").seconds, ledger.money(kind="training")
        (62.0, 0.48)
        >>> round(ledger.each("prediction").device_seconds, 3)
        0.089
    """

    prices: Prices = dataclasses.field(default_factory=Prices)
    entries: tuple[Entry, ...] = ()
    energy_sources: tuple[str, ...] = ()

    def add(self, name: str, kind: str, amounts: Amounts, count: int = 1) -> "Ledger":
        """Returns a ledger with one more entry; see `Entry`."""
        entry = Entry(name, kind, amounts, count)
        return dataclasses.replace(self, entries=(*self.entries, entry))

    def select(self, name: str | None = None, kind: str | None = None) -> "Ledger":
        """Returns a ledger of the entries with this name and kind; None matches any.

        Raises:
            ValueError: no entry has that name, or the kind is unknown.
        """
        if name is not None:
            check_name("name", name, self.names())
        if kind is not None:
            check_name("kind", kind, KINDS)
        chosen = tuple(
            entry
            for entry in self.entries
            if name in (None, entry.name) and kind in (None, entry.kind)
        )
        return dataclasses.replace(self, entries=chosen)

    def names(self) -> tuple[str, ...]:
        """Returns the distinct names of the entries, in order."""
        return tuple(dict.fromkeys(entry.name for entry in self.entries))

    def total(self, name: str | None = None, kind: str | None = None) -> Amounts:
        """Returns sums over the entries with this name and kind.

        A sum is None if the amount of any entry is None; without entries all sums are
        0.
        """
        chosen = self.select(name, kind).entries

        def add_up(amount: str) -> float | None:
            values = [getattr(entry.amounts, amount) for entry in chosen]
            return None if None in values else math.fsum(values)

        return Amounts(**{amount: add_up(amount) for amount in AMOUNTS})

    def money(self, name: str | None = None, kind: str | None = None) -> float | None:
        """Returns the cost of the entries; see `Prices.money`."""
        return self.prices.money(self.total(name, kind))

    def each(self, kind: str, name: str | None = None) -> Amounts:
        """Returns the amounts per item of a kind, such as per prediction.

        Raises:
            ValueError: there is no entry of that kind.
        """
        chosen = self.select(name, kind).entries
        if not chosen:
            raise ValueError(f"the ledger has no entry of kind {kind!r}")
        count = sum(entry.count for entry in chosen)
        known = self.total(name, kind).known()
        return Amounts(**{amount: value / count for amount, value in known.items()})

    def record(self) -> dict[str, Any]:
        """Returns prices, entries, and sums by kind and in total, as JSON values."""

        def sums(kind: str | None) -> dict[str, Any]:
            return {**self.total(kind=kind).known(), "money": self.money(kind=kind)}

        kinds = sorted({entry.kind for entry in self.entries})
        return {
            "prices": dataclasses.asdict(self.prices),
            "energy_sources": list(self.energy_sources),
            "entries": [
                {
                    "name": entry.name,
                    "kind": entry.kind,
                    "count": entry.count,
                    "amounts": entry.amounts.known(),
                }
                for entry in self.entries
            ],
            "total": {**{kind: sums(kind) for kind in kinds}, "all": sums(None)},
        }

    def write(self, workdir: str | os.PathLike) -> Path:
        """Writes ``ledger.json`` into a run's directory atomically."""
        path = Path(workdir) / LEDGER
        write_json(path, self.record())
        return path


def read_ledger(workdir: str | os.PathLike) -> Ledger:
    """Reads the ledger of a run's directory; sums are recomputed.

    Raises:
        ValueError: the file is damaged or has invalid entries; the message names it.
        FileNotFoundError: the file does not exist.
    """
    path = Path(workdir) / LEDGER
    record = read_json(path)
    try:
        if not isinstance(record.get("entries"), list):
            raise ValueError("it has no list `entries`")
        return Ledger(
            from_config(Prices, record.get("prices", {}), "prices"),
            tuple(
                from_config(Entry, entry, f"entries[{i}]")
                for i, entry in enumerate(record["entries"])
            ),
            tuple(record.get("energy_sources", ())),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


class Measured:
    """Holds the ``amounts`` of a `measure` block, available after the block."""

    def __init__(self) -> None:
        self.amounts = Amounts()

    def with_counts(self, **counts: float) -> Amounts:
        """Returns the amounts with other counts (flops, bytes, tokens) filled in."""
        return dataclasses.replace(self.amounts, **counts)


@contextlib.contextmanager
def measure(
    devices: int,
    meter: EnergyMeter | None = None,
    clock: Callable[[], float] = time.perf_counter,
    tokens: TokenCounter | None = None,
) -> Iterator[Measured]:
    """Measures time, energy and tokens of a block, even if it raises.

    Device work must finish within the block; see `jax.block_until_ready`.

    Args:
        devices: number of allocated devices.
        meter: energy meter; None for no energy.
        clock: function that returns seconds.
        tokens: counter of the tokens that the block reads and writes; None if they are
            not counted.

    Raises:
        ValueError: ``devices`` is below 1.

    Example:
        >>> times = iter((10.0, 14.0))
        >>> with measure(8, clock=lambda: next(times)) as measured:
        ...     pass
        >>> measured.with_counts(tokens_in=100.0).known()
        {'seconds': 4.0, 'device_seconds': 32.0, 'tokens_in': 100.0}
    """
    if devices < 1:
        raise ValueError(f"devices={devices} must be at least 1")
    measured = Measured()
    joules = None if meter is None else meter.joules()
    before = None if tokens is None else dataclasses.replace(tokens)
    started = clock()
    try:
        yield measured
    finally:
        seconds = clock() - started
        after = None if meter is None else meter.joules()
        spent = None if joules is None or after is None else after - joules
        amounts = Amounts(seconds, seconds * devices, joules=spent)
        if tokens is not None and before is not None:
            amounts = dataclasses.replace(
                amounts,
                tokens_in=tokens.read - before.read,
                tokens_out=tokens.written - before.written,
            )
        measured.amounts = amounts


def add_to_file(
    workdir: str | os.PathLike,
    prices: Prices,
    entries: Sequence[Entry],
    energy_sources: Sequence[str] = (),
) -> Ledger:
    """Adds entries to the ledger of a run's directory, or creates it.

    Each start of an interrupted run adds its own part.

    Args:
        workdir: the run's directory.
        prices: prices for all entries, including those already in the file.
        entries: entries to add.
        energy_sources: names of the energy counters.

    Returns:
        The written ledger.

    Raises:
        ValueError: the existing file is damaged.
    """
    before = Ledger()
    if (Path(workdir) / LEDGER).is_file():
        before = read_ledger(workdir)
    sources = tuple(sorted({*before.energy_sources, *energy_sources}))
    ledger = Ledger(prices, (*before.entries, *entries), sources)
    ledger.write(workdir)
    return ledger
