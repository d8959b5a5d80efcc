"""Held-out samples: given by the user, or a fraction of each class chosen by hash."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

from meta_opt.data.sources.sample_schema import Sample
from meta_opt.data.splits import unit_hash
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision

LEAST = 10
"""Minimum number of samples to train on."""
_FEW_SAMPLES = 1000
"""Number of samples below which a larger fraction is held out."""
_HELD_OUT_FRACTION = {True: 0.15, False: 0.1}
"""Held-out fraction per split, keyed by whether there are few samples."""
_MAX_HELD_OUT = 5000
"""Maximum number of samples of a split that is held out by hash."""


def check_enough(samples: Sequence[Sample], kind: str, name: str) -> None:
    """Raises ValueError if there are too few samples to train on.

    Args:
        samples: all samples.
        kind: the task.
        name: name of the data, for the message.
    """
    if len(samples) < LEAST:
        raise ValueError(
            f"{name} has {len(samples)} samples that can be used; give at least {LEAST}"
        )
    if kind == "classify":
        counts = collections.Counter(s.fields.label for s in samples)
        if len(counts) < 2:
            raise ValueError(
                f"{name}: all {len(samples)} samples are of the class "
                f"{next(iter(counts))!r}; give samples of at least two classes"
            )
        if max(counts.values()) < 2:
            raise ValueError(
                f"{name}: each of the {len(counts)} classes has one sample; give "
                "several samples of each"
            )


def hold_out(
    samples: Sequence[Sample],
    kind: str,
    given: Mapping[str, Sequence[Sample]],
) -> tuple[dict[str, list[Sample]], list[Decision]]:
    """Splits samples into ``train``, ``validation`` and ``test``.

    Samples that name a split keep it. For each missing split a fraction of each class
    is held out: the samples with the smallest hashes of their keys, so that a repeated
    call holds out the same ones. Samples with the same key stay together. No samples
    are held out of classes with fewer than five.

    Args:
        samples: all samples except those of ``given``.
        kind: the task; ``classify`` splits by class.
        given: ``validation`` and ``test`` samples from separate files.

    Raises:
        ValueError: no sample, or a single class, left to train on, or too few samples
            to hold any out.

    >>> def sample(i):
    ...     from meta_opt.data.sources.sample_schema import Fields
    ...     return Sample(f"row {i}", f"{i}", {}, Fields({}, label="ab"[i % 2]))
    >>> parts, _ = hold_out([sample(i) for i in range(40)], "classify", {})
    >>> {split: len(part) for split, part in parts.items()}
    {'train': 28, 'validation': 6, 'test': 6}
    """
    parts: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    for split, its_own in given.items():
        parts[split] += its_own
    free = []
    for sample in samples:
        if sample.fields.split is not None:
            parts[sample.fields.split].append(sample)
        else:
            free.append(sample)
    wanting = [split for split in ("validation", "test") if not parts[split]]
    reasons = {
        split: f"{len(part)} samples, as given" for split, part in parts.items() if part
    }
    if wanting and not free:
        # Every sample names a split, and none of them is for validation.
        free, parts["train"] = parts["train"], []
        wanting = [split for split in wanting if split == "validation"]
    share = _HELD_OUT_FRACTION[len(free) < _FEW_SAMPLES]
    held = _held_out_keys(
        free, kind, wanting, min(share, _MAX_HELD_OUT / max(len(free), 1))
    )
    for sample in free:
        parts[held.get(sample.key, "train")].append(sample)
    for split in wanting:
        whole = len(free)
        reasons[split] = (
            f"{len(parts[split])} of {whole} samples, {share:.0%}"
            + (" of each class" if kind == "classify" else "")
            + ", by a hash of their names"
        )
    reasons["train"] = f"{len(parts['train'])} samples"
    if not parts["train"]:
        raise ValueError("no sample is left to train on; give some the split `train`")
    if kind == "classify" and len(set(names := _labels(parts["train"]))) < 2:
        raise ValueError(
            f"all {len(names)} samples to train on are of the class {names[0]!r}; give "
            "some of other classes the split `train`"
        )
    if not parts["validation"]:
        distinct = len({sample.key for sample in free})
        raise ValueError(
            f"{len(free)} samples with {distinct} different files or texts are too few "
            "to hold any out for validation; give more, or validation=..."
        )
    decisions = [
        Decision(f"{split}_samples", len(part), reasons.get(split, "none"))
        for split, part in parts.items()
    ]
    return parts, decisions


def _labels(samples: Sequence[Sample]) -> list[str | None]:
    return [sample.fields.label for sample in samples]


def _held_out_keys(
    samples: Sequence[Sample], kind: str, splits: Sequence[str], share: float
) -> dict[str, str]:
    """Returns the split of each held-out key."""
    classes: dict[str | None, dict[str, None]] = collections.defaultdict(dict)
    taken: set[str] = set()
    for sample in samples:
        # A key with samples of several classes counts for the first one.
        if sample.key not in taken:
            taken.add(sample.key)
            label = sample.fields.label if kind == "classify" else None
            classes[label][sample.key] = None
    found = {}
    for keys in classes.values():
        order = sorted(keys, key=unit_hash)
        count = math.floor(share * len(order) + 0.5)
        if count == 0 and len(order) >= 5:
            count = 1
        for place, split in enumerate(splits):
            for key in order[place * count : (place + 1) * count]:
                found[key] = split
    return found


def trained_columns(columns: Columns, train: Sequence[Sample]) -> Columns:
    """Returns the columns without the modalities that no training sample has."""
    there = {m for sample in train for m in sample.media}
    reads = any(sample.fields.reads for sample in train)
    return dataclasses.replace(
        columns,
        media={m: name for m, name in columns.media.items() if m in there},
        text=columns.text if reads else (),
    )


def without_unknown(
    parts: Mapping[str, Sequence[Sample]], kind: str, modalities: Sequence[str]
) -> tuple[dict[str, list[Sample]], list[Decision]]:
    """Leaves out held-out samples that the model cannot predict.

    Args:
        parts: samples by split.
        kind: the task.
        modalities: modalities of the training samples.

    Returns:
        The parts, without samples whose class is not in the training split or that have
        none of its modalities; and decisions with the numbers of these samples.
    """
    known = {sample.fields.label for sample in parts["train"]}
    found, decisions = {"train": list(parts["train"])}, []
    for split in ("validation", "test"):
        kept = []
        unknown: collections.Counter[str] = collections.Counter()
        blind: collections.Counter[str] = collections.Counter()
        for sample in parts[split]:
            has = [*sample.media, *(("text",) if sample.fields.reads else ())]
            blind.update(m for m in has if m not in modalities)
            seen = any(m in modalities for m in has)
            if kind == "classify" and sample.fields.label not in known:
                unknown[str(sample.fields.label)] += 1
            elif seen:
                kept.append(sample)
        found[split] = kept
        if unknown:
            listed = ", ".join(f"{n!r} ({c})" for n, c in unknown.most_common(5))
            reason = (
                f"{unknown.total()} samples of {len(unknown)} classes that no training "
                f"sample has: {listed}; excluded from its metrics"
            )
            decisions.append(Decision(f"{split}_left_out", unknown.total(), reason))
        if blind:
            listed = ", ".join(f"{m} of {c} samples" for m, c in blind.items())
            reason = f"{listed}: ignored, since no training sample has it"
            decisions.append(Decision(f"{split}_not_read", sorted(blind), reason))
    return found, decisions
