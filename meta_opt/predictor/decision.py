"""Automatically chosen settings, with reasons."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from meta_opt.text_files import read_json, write_json

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Decision:
    """One automatically chosen setting.

    Attributes:
        name: name of the setting, such as ``image_size``.
        value: chosen value, a JSON value.
        reason: reason for the choice, with the numbers that it is based on.

    >>> print(Decision("batch_size", 16, "200 examples"))
    batch_size = 16: 200 examples
    """

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value}: {self.reason}"


class Decisions(list[Decision]):
    """Decisions in the order in which they were made.

    >>> decisions = Decisions()
    >>> decisions.choose("batch_size", 16, "200 examples")
    >>> decisions[0].value
    16
    """

    def choose(self, name: str, value: Any, reason: str) -> None:
        """Appends a decision."""
        self.append(Decision(name, value, reason))


def log_decisions(decisions: Sequence[Decision]) -> None:
    """Logs one line per decision, in the first process only."""
    for decision in decisions if jax.process_index() == 0 else ():
        _log.info("%s", decision)


def write_decisions(path: str | os.PathLike, decisions: Sequence[Decision]) -> None:
    """Writes decisions to a JSON file, atomically."""
    write_json(path, {"decisions": as_json(decisions)})


def read_decisions(path: str | os.PathLike) -> tuple[Decision, ...]:
    """Reads decisions from a file that `write_decisions` wrote.

    Raises:
        ValueError: the file has no decisions.
        OSError: the file cannot be read.
    """
    found = read_json(path).get("decisions")
    if not isinstance(found, list):
        raise ValueError(f"{path} has no decisions")
    return from_json(found)


def as_json(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Returns decisions as JSON values."""
    return [dataclasses.asdict(one) for one in decisions]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Decision, ...]:
    """Returns decisions from JSON values; the inverse of `as_json`."""
    return tuple(Decision(x["name"], x["value"], x["reason"]) for x in values)
