"""Totals over a compiled program, with every iteration of its loops counted.

The compiler's own analysis counts the body of a loop once, which is most of a model
with scanned layers. `program_totals` walks the program's text and counts every
computation as often as it is called.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

from meta_opt.finetuning.hlo_bytes import shape_bytes

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_DIMENSIONS = re.compile(r"\w+\[([\d,]*)\]")
_COLLECTIVES = (
    *("all-reduce", "all-gather", "all-to-all", "reduce-scatter"),
    "collective-permute",
)


class ProgramTotals(NamedTuple):
    """Work of one device per call of a program.

    Attributes:
        dot_flops: floating-point operations of ``dot`` instructions, which are all
            matrix products on CPU. 0 on TPU, whose compiler uses other instructions.
        collectives: number of collective operations.
        collective_bytes: bytes that collectives return to the device; for a pair of
            start and done, the larger of the two.
    """

    dot_flops: float
    collectives: int
    collective_bytes: int


def program_totals(hlo: str) -> ProgramTotals:
    r"""Counts operations in the text of a compiled program.

    The trip count of a loop is the compiler's annotation if there is one, else the
    largest integer in the loop's condition, which holds for loops of `jax.lax.scan`.
    All branches of a conditional count.

    Args:
        hlo: text of the compiled program, ``compiled.as_text()``.

    Raises:
        ValueError: the text has no entry computation.

    >>> dot = "  %d = f32[2,4] dot(%a, %b), lhs_contracting_dims={1}, rhs_..."
    >>> x, y = "  %a = f32[2,8] parameter(0)", "  %b = f32[8,4] parameter(1)"
    >>> text = "\n".join(["ENTRY %main (a: f32[2,8]) -> f32[2,4] {", x, y, dot, "}"])
    >>> program_totals(text).dot_flops
    128.0
    """
    bodies, entry = _computations(hlo)
    if entry is None:
        raise ValueError(
            "no program entry in the text; give that of a compiled program"
        )
    calls = defaultdict(int, {entry: 1})
    flops = 0.0
    messages: dict[str, tuple[int, int]] = {}
    # A computation precedes its callers in the text.
    for name in reversed(bodies):
        times = calls[name]
        if not times:
            continue
        shapes: dict[str, str] = {}
        for number, line in enumerate(bodies[name]):
            found = _INSTRUCTION.match(line)
            if found is None:
                continue
            result, shape, operation, arguments = found.groups()
            shapes[result] = shape
            trips = times
            if operation == "while":
                trips *= _trip_count(line, bodies)
            for callee in _callees(line):
                calls[callee] += trips
            if operation == "dot":
                flops += times * _dot_flops(shape, arguments, shapes)
            if operation.removesuffix("-start") in _COLLECTIVES:
                channel = _CHANNEL.search(line)
                key = channel[1] if channel else f"{name} {number}"
                before = messages.get(key, (0, 0))
                size = times * _largest(shape)
                messages[key] = max(before[0], times), max(before[1], size)
    return ProgramTotals(
        dot_flops=flops,
        collectives=sum(count for count, _ in messages.values()),
        collective_bytes=sum(size for _, size in messages.values()),
    )


def _computations(hlo: str) -> tuple[dict[str, list[str]], str | None]:
    """Returns the lines of each computation, in order, and the entry's name."""
    bodies: dict[str, list[str]] = {}
    entry, lines = None, list[str]()
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _callees(line: str) -> list[str]:
    found = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        found += [name.strip().lstrip("%") for name in branches.split(",")]
    return found


def _trip_count(line: str, bodies: dict[str, list[str]]) -> int:
    noted = _TRIPS.search(line)
    if noted:
        return int(noted[1])
    condition = _CONDITION.search(line)
    tests = bodies.get(condition[1], []) if condition else []
    limits = [int(found[1]) for test in tests if (found := _CONSTANT.search(test))]
    return max(limits, default=1)


def _dot_flops(shape: str, arguments: str, shapes: dict[str, str]) -> float:
    """Counts two operations for each multiply-add."""
    left = re.match(r"[^%]*%([\w.\-]+)", arguments)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", arguments)
    if left is None or contracted is None:
        return 0.0
    sizes = _sizes(shapes[left[1]])
    depth = math.prod(sizes[int(axis)] for axis in contracted[1].split(",") if axis)
    return 2.0 * depth * math.prod(_sizes(shape))


def _sizes(shape: str) -> list[int]:
    found = _DIMENSIONS.search(shape)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _largest(shape: str) -> int:
    """Returns bytes of an array, or of the largest in a tuple of operands and results.

    The arrays of a plain tuple, of an operation that combines several, are added up.
    """
    if not shape.startswith("(("):
        return shape_bytes(shape)
    return max(shape_bytes(part) for part in re.split(r"\), *\(?", shape))
