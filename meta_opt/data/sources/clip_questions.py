"""Questions about clips that are generated from their metadata and frames.

In the style of TGIF-QA (Jang et al. 2017): what is seen, how often something happens,
and in which order. For the last two the clip is edited so that the answer is known.
Each question comes with a choice: which of several names is the clip's?
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meta_opt.data.splits import unit_hash

CATEGORY = "what category is this?"
CHANGES = "how often does the picture change?"
DIRECTION = "is it played forwards or backwards?"
KINDS = {"category": CATEGORY, "changes": CHANGES, "direction": DIRECTION}
"""Generated questions by kind."""
COUNTED = ("changes", "count")
"""Kinds of questions, generated or annotated, whose answer is a number."""


class Questions(NamedTuple):
    """N questions about B clips.

    Attributes:
        clip: int [N], indices of the clips.
        frames: int [N, T], indices of the clip's frames that are shown, -1 for none.
        kind: N names of kinds, by which accuracy is reported.
        text: N texts that describe the clip, for losses on texts.
        question: N texts.
        answer: N texts; "" if there are only options to choose from.
        choices: N times C options, one of which is right; C may be 0.
        offered: N times C texts, the options as the model reads them.
        choice: int [N], index of the right option; -1 if there is none.
    """

    clip: np.ndarray
    frames: np.ndarray
    kind: tuple[str, ...]
    text: tuple[str, ...]
    question: tuple[str, ...]
    answer: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    offered: tuple[tuple[str, ...], ...]
    choice: np.ndarray


def ask_questions(
    keys: Sequence[str],
    names: Sequence[str],
    categories: Sequence[str],
    frames: np.ndarray,
    present: np.ndarray,
    choices: int = 4,
    seed: int = 0,
) -> Questions:
    """Generates questions, deterministically.

    Answers are balanced: the category is asked of equally many clips of each category,
    as many as the rarest has, every other clip is played backwards, and the numbers of
    changes and the positions of right options alternate, too. If neighbouring frames
    are equal, the answer counts visible changes only.

    Args:
        keys: B keys of the clips.
        names: B names of the clips.
        categories: B categories of the clips.
        frames: uint8 [B, T, h, w, 3].
        present: bool [B, T], false after the end of a clip.
        choices: C, number of options.
        seed: random seed of the assignment of questions to clips.

    Raises:
        ValueError: fewer than C different names.
    """
    if len(set(names)) < choices:
        raise ValueError(
            f"{choices} names to choose from, and the clips have {len(set(names))}"
        )
    rows: list[tuple[int, np.ndarray, str, str]] = []
    lengths = present.sum(axis=1)

    def in_turn(kind: str) -> list[int]:
        return sorted(
            range(len(keys)), key=lambda i: unit_hash(f"{seed}:{kind}:{keys[i]}")
        )

    order = in_turn("category")
    counts = collections.Counter(categories)
    rarest = min(counts.values())
    for category in sorted(counts):
        of_it = [i for i in order if categories[i] == category]
        rows += [
            (i, np.arange(lengths[i]), "category", category) for i in of_it[:rarest]
        ]
    for turn, i in enumerate(in_turn("changes")):
        shown = held_frames(lengths[i], 1 + turn % lengths[i])
        rows.append((i, shown, "changes", str(count_changes(frames[i][shown]))))
    moving = [i for i in in_turn("direction") if lengths[i] > 1]
    for turn, i in enumerate(moving):
        shown = np.arange(lengths[i])
        backwards = turn % 2 == 1
        answer = "backwards" if backwards else "forwards"
        rows.append((i, shown[::-1] if backwards else shown, "direction", answer))
    return _with_choices(rows, names, present.shape[1], choices, seed)


def _with_choices(
    rows: Sequence[tuple[int, np.ndarray, str, str]],
    names: Sequence[str],
    length: int,
    choices: int,
    seed: int,
) -> Questions:
    rng = np.random.default_rng(seed)
    every = sorted(set(names))
    offered, frames = [], np.full((len(rows), length), -1)
    place = rng.permutation(len(rows)) % choices
    for n, (i, shown, _, _) in enumerate(rows):
        others = [name for name in every if name != names[i]]
        drawn = [others[j] for j in rng.permutation(len(others))[: choices - 1]]
        drawn.insert(place[n], names[i])
        offered.append(tuple(drawn))
        frames[n, : len(shown)] = shown
    kinds = tuple(row[2] for row in rows)
    return Questions(
        clip=np.asarray([row[0] for row in rows]),
        frames=frames,
        kind=kinds,
        text=tuple(names[row[0]] for row in rows),
        question=tuple(KINDS[kind] for kind in kinds),
        answer=tuple(row[3] for row in rows),
        choices=tuple(offered),
        offered=tuple(tuple(f"is it {name}?" for name in four) for four in offered),
        choice=place.astype(np.int32),
    )


def held_frames(length: int, different: int) -> np.ndarray:
    """Frame indices that repeat frames so that only some of them differ.

    >>> held_frames(8, 3).tolist()
    [0, 0, 0, 1, 1, 1, 2, 2]
    """
    return np.arange(length) * different // length


def count_changes(frames: np.ndarray) -> int:
    """Number of frames [T, h, w, 3] that differ from the previous one.

    >>> count_changes(np.array([1, 1, 2, 1]).reshape(4, 1, 1, 1))
    2
    """
    return int(np.any(frames[1:] != frames[:-1], axis=(1, 2, 3)).sum())


def answer_vocabulary(questions: Questions) -> tuple[str, ...]:
    """The distinct answers of training questions, sorted; may be empty."""
    return tuple(sorted({*questions.answer} - {""}))


def answer_ids(questions: Questions, vocabulary: Sequence[str]) -> np.ndarray:
    """Int32 [N], indices of the answers in the vocabulary, -1 for unknown answers."""
    places = {answer: i for i, answer in enumerate(vocabulary)}
    return np.asarray([places.get(a, -1) for a in questions.answer], np.int32)
