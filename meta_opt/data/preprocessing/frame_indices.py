"""Indices of the frames that are read of a clip."""

import math

_TOLERANCE = 1e-6
"""Fraction of a frame within which a time belongs to it."""


def even_indices(total: int, count: int) -> list[int]:
    """Indices ``i total // count``, or all of fewer than ``count``.

    >>> even_indices(10, 4), even_indices(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    if total < count:
        return list(range(max(total, 0)))
    return [i * total // count for i in range(count)]


def segment_frames(
    start_seconds: float, end_seconds: float, frames_per_second: float, total: int
) -> tuple[int, int]:
    """Index of the first frame of a segment, and of the first frame after it.

    Frame i is shown from ``i / frames_per_second`` on. A segment between two frames has
    the earlier one.

    Args:
        start_seconds: start of the segment.
        end_seconds: end of the segment.
        frames_per_second: frame rate of the clip.
        total: number of frames of the clip.

    >>> segment_frames(1.0, 3.0, 2.0, 100), segment_frames(1.1, 1.2, 1.0, 100)
    ((2, 6), (1, 2))
    >>> segment_frames(40.0, 60.0, 2.0, 100), segment_frames(60.0, 70.0, 2.0, 100)
    ((80, 100), (100, 100))
    """
    # Clip times first, since huge or infinite ones do not fit into an integer.
    first, last = (
        math.ceil(min(seconds * frames_per_second, total) - _TOLERANCE)
        for seconds in (start_seconds, end_seconds)
    )
    if first == last and start_seconds * frames_per_second < total:
        first = max(first - 1, 0)
        last = first + 1
    return min(first, total), min(last, total)
