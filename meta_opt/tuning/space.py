"""Search spaces: named settings, each with a range or a list of choices."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from meta_opt.types import check_mapping, from_config, near_match


class Suggests(Protocol):
    """What a space asks of an ``optuna.Trial``."""

    def suggest_float(
        self, name: str, low: float, high: float, *, log: bool = False
    ) -> float:
        """Draws from a range."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Draws from choices."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where one setting is looked for.

    Attributes:
        kind: ``linear`` or ``log`` (uniform on that scale), or ``choice``.
        low: least value of a range.
        high: greatest value of a range.
        choices: options of ``choice``.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Checks that there is something to choose from."""
        kinds = ("linear", "log", "choice")
        if self.kind not in kinds:
            raise ValueError(
                f"kind={self.kind!r} must be one of {', '.join(kinds)}"
                f"{near_match(self.kind, kinds)}"
            )
        if self.kind == "choice":
            if not self.choices:
                raise ValueError("a choice needs choices")
        elif not self.low < self.high or (self.kind == "log" and self.low <= 0):
            raise ValueError(
                f"a {self.kind} range from {self.low} to {self.high} is empty or, on "
                "the log scale, not positive"
            )

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Draws a value under ``name``."""
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.choices)
        return trial.suggest_float(name, self.low, self.high, log=self.kind == "log")


def read_space(given: Mapping[str, Any], path: str) -> dict[str, Setting]:
    """Settings by name, of nested mappings.

    Args:
        given: fields of `Setting` by name of the setting.
        path: path of the mapping in the config, for error messages.

    Raises:
        ValueError: not a mapping, an unknown field, or values that `Setting` refuses.
    """
    check_mapping(path, given)
    return {k: from_config(Setting, v, f"{path}.{k}") for k, v in given.items()}


def suggest_all(space: Mapping[str, Setting], trial: Suggests) -> dict[str, Any]:
    """Draws every setting, in alphabetical order, whatever the order of ``space``."""
    return {name: space[name].suggest(trial, name) for name in sorted(space)}
