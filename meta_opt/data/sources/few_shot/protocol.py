"""Choice of images per class, and their split into phases, validation and test.

With 28, 6 and 6 images of each of 30 classes: 840 training images in four phases of
210, 180 for validation and 180 for test (Roumeliotis et al. 2025, IEEE Access). All
choices depend on hashes of the images' keys and the seed.
"""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from meta_opt.data.preprocessing.near_duplicates import fingerprint, groups
from meta_opt.data.preprocessing.pictures import Unreadable
from meta_opt.data.preprocessing.prompts import TEMPLATES, fill_template
from meta_opt.data.sources.few_shot.items import Item
from meta_opt.data.splits import unit_hash
from meta_opt.types import check_distinct

_log = logging.getLogger(__name__)

PROMPT = TEMPLATES["plain"]
"""The default prompt."""


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
    """Settings of the few-shot protocol.

    Attributes:
        train: training images per class; a multiple of ``phases``.
        validation: validation images per class.
        test: test images per class.
        phases: number of disjoint training phases of equal size.
        widths: image widths in pixels; all images are written at each.
        seed: random seed of the choice and order of images.
        candidates: largest number of images per class that are read and compared; at
            least the number of images that are used.
        max_unreadable: largest number of unreadable images, of all classes together.
        prompt: template of the prompt, with ``{categories}`` for the list of classes
            and doubled braces for literal ones.
    """

    train: int = 28
    validation: int = 6
    test: int = 6
    phases: int = 4
    widths: tuple[int, ...] = (100, 200, 400)
    seed: int = 0
    candidates: int = 80
    max_unreadable: int = 100
    prompt: str = PROMPT

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes.

        >>> FewShotConfig(train=30)
        Traceback (most recent call last):
        ValueError: train=30 images of a class do not divide into phases=4
        """
        for name in ("train", "validation", "test", "phases"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.train % self.phases:
            raise ValueError(
                f"train={self.train} images of a class do not divide into "
                f"phases={self.phases}"
            )
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths} must be one or more, of 1 or more")
        check_distinct("widths", self.widths)
        if self.candidates < self.per_class:
            raise ValueError(
                f"candidates={self.candidates} are fewer than the {self.per_class} "
                "pictures that are taken of a class"
            )
        if self.max_unreadable < 0:
            raise ValueError(
                f"max_unreadable={self.max_unreadable} must not be below 0"
            )
        try:
            asked = fill_template(self.prompt, categories="a, b")
        except ValueError as error:
            raise ValueError(f"prompt={self.prompt!r}: {error}") from None
        if "a, b" not in asked:
            raise ValueError(f"prompt={self.prompt!r} has no {{categories}}")

    @property
    def per_class(self) -> int:
        """Number of images per class."""
        return self.train + self.validation + self.test


class Chosen(NamedTuple):
    """An image of the data set.

    Attributes:
        item: the image.
        split: ``train``, ``validation`` or ``test``.
        phase: training phase, from 1; 0 for the other splits.
    """

    item: Item
    split: str
    phase: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """The images of the data set, and statistics of the excluded ones.

    Attributes:
        chosen: images by class, in the order of splits and phases.
        unreadable: reasons for unreadable images, by key.
        copies: number of exact duplicates within a class.
        ambiguous: number of near duplicates of images of other classes.
    """

    chosen: Mapping[str, tuple[Chosen, ...]]
    unreadable: Mapping[str, str]
    copies: int
    ambiguous: int


def choose(classes: Mapping[str, Sequence[Item]], config: FewShotConfig) -> Choice:
    """Chooses images of each class and assigns them to splits and phases.

    Images are taken in the order of a hash of seed and key. Excluded are unreadable
    images, exact duplicates, and near duplicates of images of other classes, whose
    class is ambiguous. Near duplicates within a class share a split
    (`meta_opt.data.preprocessing.near_duplicates`); groups that are too large for every
    split are truncated.

    Args:
        classes: the items of each class.
        config: settings of the protocol.

    Raises:
        ValueError: classes with too few images, with their counts.
        UnreadableFilesError: more images are unreadable than the config allows.
    """
    need = config.per_class
    if few := {name: len(x) for name, x in classes.items() if len(x) < need}:
        raise ValueError(
            f"{need} images of each class are needed; "
            + ", ".join(f"{name!r} has {count}" for name, count in few.items())
        )
    unreadable, copies = Unreadable(config.max_unreadable), 0
    kept: dict[str, list[Item]] = {}
    prints = []
    for name, items in tqdm(classes.items(), desc="comparing", unit="class"):
        kept[name], seen = [], set()
        for item in _shuffled(items, config.seed):
            if len(kept[name]) == config.candidates:
                break
            try:
                preview = item.preview()
            # Decoders raise exceptions of any type for damaged files.
            except Exception as error:
                unreadable.add(item.key, f"{type(error).__name__}: {error}")
                continue
            shape = str(preview.size).encode()
            digest = hashlib.sha256(shape + preview.tobytes()).digest()
            if digest in seen:
                copies += 1
                continue
            seen.add(digest)
            kept[name].append(item)
            prints.append(fingerprint(preview))
    of_class = np.repeat(np.arange(len(kept)), [len(x) for x in kept.values()])
    if not prints:
        key, reason = next(iter(unreadable.reasons.items()))
        raise ValueError(f"none of the images can be read; the first, {key}: {reason}")
    group = groups(
        np.stack([one.bits for one in prints]),
        np.stack([one.colours for one in prints]),
    )
    classes_of = collections.defaultdict(set)
    for number, owner in zip(group, of_class, strict=True):
        classes_of[number].add(owner)
    chosen, ambiguous, start = {}, 0, 0
    for name, items in kept.items():
        own = collections.defaultdict(list)
        for item, number in zip(items, group[start : start + len(items)], strict=True):
            if len(classes_of[number]) > 1:
                ambiguous += 1
            else:
                own[number].append(item)
        start += len(items)
        splits = _divide(name, len(classes[name]), list(own.values()), config)
        chosen[name] = tuple(_in_phases(splits, config))
    if unreadable.reasons or copies or ambiguous:
        _log.warning(
            "left out: %d unreadable, %d copies, %d near duplicates of another class",
            *(len(unreadable.reasons), copies, ambiguous),
        )
    return Choice(chosen, unreadable.reasons, copies, ambiguous)


def _shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    return sorted(items, key=lambda item: unit_hash(f"{seed} {item.key}"))


def _divide(
    name: str, count: int, found: Sequence[Sequence[Item]], config: FewShotConfig
) -> dict[str, list[Item]]:
    """Fills the splits with groups of near duplicates, without dividing a group.

    Args:
        name: name of the class.
        count: number of images of the class, for the error message.
        found: groups of near duplicates, in the order in which they are taken.
        config: settings with the sizes of the splits.
    """
    room = {s: getattr(config, s) for s in ("train", "validation", "test")}
    splits: dict[str, list[Item]] = {split: [] for split in room}

    def put(group: Sequence[Item]) -> None:
        split = max(room, key=lambda s: room[s])
        taken = group[: room[split]]
        splits[split] += taken
        room[split] -= len(taken)

    # Take as many groups as needed, and place the largest first, while there is room.
    first, total = 0, 0
    while first < len(found) and total < config.per_class:
        total += len(found[first])
        first += 1
    for group in sorted(found[:first], key=len, reverse=True):
        put(group)
    for group in found[first:]:
        put(group)
    if any(room.values()):
        usable = sum(map(len, found))
        raise ValueError(
            f"of the {count} images of class {name!r} {usable} are usable, in "
            f"{len(found)} groups of near duplicates; they do not fill splits of "
            f"{config.train}, {config.validation} and {config.test}. Add images that "
            "differ"
            + f", or raise candidates={config.candidates}"
            * (count > config.candidates)
        )
    return splits


def _in_phases(
    splits: Mapping[str, Sequence[Item]], config: FewShotConfig
) -> list[Chosen]:
    # Shuffle again, since groups were placed in the order of their sizes.
    order = {s: _shuffled(items, config.seed + 1) for s, items in splits.items()}
    size = config.train // config.phases
    found = [
        Chosen(item, "train", 1 + i // size) for i, item in enumerate(order["train"])
    ]
    for split in ("validation", "test"):
        found += [Chosen(item, split, 0) for item in order[split]]
    return found
