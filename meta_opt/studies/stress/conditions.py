"""Conditions of the stress test: changes to training data, images and prompt."""

import dataclasses
from typing import Any

from meta_opt.data.preprocessing.corruptions import CORRUPTIONS
from meta_opt.types import check_name


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition of the stress test; the default is a test without changes.

    Attributes:
        corruption: one of `CORRUPTIONS`; "" for none.
        severity: severity of the corruption, 1 to 5; 0 without a corruption.
        train_px: width of training images in pixels; 0 if not varied.
        test_px: width of test images in pixels; 0 if not varied.
        prompt: name of a changed prompt, such as ``shuffled``.
        label_noise: fraction of wrong labels in training.
        shots: number of training examples per class; 0 for all.
        batch_size: training batch size; 0 if not varied.
        data: name of another data set for the test; "" for the training data set.

    Example:
        >>> Condition("contrast", 3, train_px=100, test_px=400).name
        'contrast 3, 100 px to 400 px'
    """

    corruption: str = ""
    severity: int = 0
    train_px: int = 0
    test_px: int = 0
    prompt: str = "plain"
    label_noise: float = 0.0
    shots: int = 0
    batch_size: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for invalid values."""
        if self.corruption:
            check_name("corruption", self.corruption, CORRUPTIONS)
        if (self.severity not in range(1, 6)) if self.corruption else self.severity:
            raise ValueError(
                f"severity={self.severity} of corruption={self.corruption!r}: it is 1 "
                "to 5, and 0 without a corruption"
            )
        for name in ("train_px", "test_px", "shots", "batch_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if (self.train_px == 0) != (self.test_px == 0):
            raise ValueError(
                f"train_px={self.train_px} and test_px={self.test_px}: give both or "
                "neither"
            )
        if not 0 <= self.label_noise < 1:
            raise ValueError(
                f"label_noise={self.label_noise} must be from 0 to below 1"
            )
        if not self.prompt:
            raise ValueError("prompt='' must be a name; an ordinary one is 'plain'")

    @property
    def name(self) -> str:
        """Name in tables."""
        parts = []
        if self.corruption:
            parts.append(f"{self.corruption} {self.severity}")
        if self.prompt != "plain":
            parts.append(f"prompt {self.prompt}")
        if self.label_noise:
            parts.append(f"{100 * self.label_noise:g}% wrong labels")
        if self.shots:
            parts.append(f"{self.shots} shot{'s' * (self.shots > 1)}")
        if self.batch_size:
            parts.append(f"batches of {self.batch_size}")
        if self.data:
            parts.append(f"data {self.data}")
        parts = parts or ["clean"]
        if self.test_px != self.train_px:
            parts.append(f"{self.train_px} px to {self.test_px} px")
        elif self.train_px:
            parts.append(f"{self.train_px} px")
        return ", ".join(parts)

    @property
    def uncorrupted(self) -> "Condition":
        """This condition without the corruption."""
        return dataclasses.replace(self, corruption="", severity=0)

    @property
    def reference(self) -> "Condition | None":
        """The condition to compare this one with; None for a test without changes.

        Changes to images or prompt are undone first, so that the same model is
        compared; without such changes, those to training are undone. The data set is
        kept, because the examples of another one have no counterpart.
        """
        tested_plainly = dataclasses.replace(
            self.uncorrupted, prompt="plain", test_px=self.train_px
        )
        if tested_plainly != self:
            return tested_plainly
        trained_plainly = dataclasses.replace(
            self, label_noise=0.0, shots=0, batch_size=0
        )
        return trained_plainly if trained_plainly != self else None

    def to_json(self) -> dict[str, Any]:
        """Returns the settings that differ from the defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
