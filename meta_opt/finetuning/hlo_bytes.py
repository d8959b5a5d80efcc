"""Bytes that a compiled program reads and writes, counted in its HLO text.

The elementwise part of an optimizer is bound by memory bandwidth, so its time depends
on how often each parameter is read and written, which fusion determines. The
compiler's own count includes copies to fast memory twice, and both sides of a branch.
"""

import math
import re

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
}
_SHAPE = re.compile(rf"({'|'.join(_BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_MOVING = ("fusion", "reduce", "dot", "convolution", "transpose")
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|[^"]*triton[^"]*)"')
"""Operations that read and write memory, beside calls of Pallas kernels. All others
move data to where it is used (copies and slices ahead of a fusion), rename it, or
contain other programs (branches, loops)."""


def bytes_moved(hlo: str) -> int:
    r"""Counts bytes read and written by the operations of the entry computation.

    Branches, loops and copies are not counted.

    Args:
        hlo: text of the compiled program, ``compiled.as_text()``.

    Raises:
        ValueError: the text has no entry computation.

    >>> line = "  %b = f32[8] fusion(%a), kind=kLoop"
    >>> bytes_moved("ENTRY %main {\n  %a = f32[8] parameter(0)\n" + line + "\n}")
    64
    """
    found = re.search(r"^ENTRY [^\n]*\n(.*?)^}", hlo, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(
            "no program entry in the text; give that of a compiled program"
        )
    sizes: dict[str, int] = {}
    total = 0
    for line in found[1].splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        name, shape, operation, rest = instruction.groups()
        sizes[name] = shape_bytes(shape)
        if operation not in _MOVING and not _KERNEL.search(rest):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
        total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def shape_bytes(shape: str) -> int:
    """Returns the bytes of all arrays in the text of a shape or tuple of shapes."""
    return sum(
        _BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in _SHAPE.findall(shape)
    )
