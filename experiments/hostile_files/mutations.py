"""Seeded mutations of files: random bytes, and changes with valid checksums.

A change that a checksum detects tests only the checksum, so the checksums of PNG chunks
and tar headers and the lengths of safetensors headers are recomputed.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_EXTREMES = (0, 1, -1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_INFINITE = "@1e999@"
"""Placeholder for 1e999, which is valid JSON but overflows a float."""
_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "a", [], {}, [[]], [None], {"": None}, 0.5, -0.5, 1e308),
    *_EXTREMES,
    *_LARGE,
    *(10**30, float("nan"), float("inf"), _INFINITE, "1", "\0", "\ud800", "a" * 5000),
    *("../../outside", "/outside", "a/../../outside", "{x.y}", "{:>999999999}"),
)
_DEPTHS = (50, 500, 5000, 100_000)
_PATHS = (b"../outside", b"/outside", b"../../../outside", b"a/../../b", b".", b"")
_SVG_PARTS = (
    '<image href="/outside.png" width="9" height="9"/>',
    '<pattern id="p"><rect width="9" height="9" fill="url(#p)"/></pattern>',
    '<g id="u"><use href="#u"/></g><use href="#u"/>',
    '<filter id="f"><feTurbulence baseFrequency="9" numOctaves="999"/></filter>',
    '<filter id="f"><feGaussianBlur stdDeviation="1e9"/></filter>',
    '<mask id="m" mask="url(#m)"><rect width="9" height="9"/></mask>',
    '<rect width="9" height="9" stroke-dasharray="1e-9" stroke="red"/>',
    "<style>*{filter:url(#f);mask:url(#m);marker:url(#u)}</style>",
)
_TAR_BLOCK = 512


def mutate(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Returns a damaged copy of a file.

    Args:
        data: the file.
        kind: kind of mutation, one of `KINDS`. With every kind, about half of the
            copies have random bytes changed instead.
        rng: random generator of the mutation.

    Returns:
        Bytes of any length; in rare cases they equal ``data``.

    Raises:
        KeyError: an unknown kind.

    >>> mutate(b"abc", "bytes", np.random.default_rng(0)) != b"abc"
    True
    """
    change = KINDS[kind]
    if change is not _bytes and rng.random() < 0.6:
        return change(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _bytes(data, rng)
    return data


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Makes one change at a random position."""
    found = bytearray(data)
    place = int(rng.integers(len(found) + 1))
    # Half of the changes are in the header, where they alter how the rest is parsed.
    if rng.random() < 0.5:
        place = min(place, int(rng.integers(64)))
    how = rng.integers(7)
    if how == 0 and found:
        found[place % len(found)] ^= 1 << int(rng.integers(8))
    elif how == 1 and found:
        found[place % len(found)] = int(rng.choice((0, 1, 127, 128, 254, 255)))
    elif how == 2:
        found[place:place] = rng.bytes(int(rng.integers(1, 16)))
    elif how == 3:
        del found[place : place + int(rng.integers(1, 16))]
    elif how == 4:
        del found[place:]
    elif how == 5:
        width = int(rng.choice(list(_WIDTHS)))
        value = int(rng.choice(_EXTREMES)) if width < 8 else _pick(_LARGE, rng)
        order = "<" if rng.random() < 0.5 else ">"
        packed = struct.pack(order + _WIDTHS[width], value % 2 ** (8 * width))
        found[place : place + width] = packed
    else:
        length = int(rng.integers(1, 256))
        start = int(rng.integers(len(found) + 1))
        found[place:place] = found[start : start + length]
    return bytes(found)


def _json(data: bytes, rng: np.random.Generator) -> bytes:
    """Replaces, removes, renames, repeats or nests one node of a JSON value."""
    try:
        value = json.loads(data)
    except ValueError:
        return _bytes(data, rng)
    places = list(_places(value))
    if not places:
        return _encoded(_pick(_VALUES, rng))
    holder, key = places[int(rng.integers(len(places)))]
    how = rng.integers(8)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[f"{key}{_pick(('_', 's', '/', '.0'), rng)}"] = holder.pop(key)
    elif how == 2 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * int(rng.choice((1, 10, 1000)))
    elif how == 3:
        depth, text = _pick(_DEPTHS, rng), _encoded(value)
        opening, closing = _pick(((b"[", b"]"), (b'{"a":', b"}")), rng)
        return (
            opening * depth + (text if rng.random() < 0.5 else b"0") + closing * depth
        )
    elif how == 4:
        holder[key] = _pick(places, rng)[0]
        try:
            return _encoded(value)
        except ValueError:  # The value contains itself.
            holder[key] = None
    else:
        holder[key] = _pick(_VALUES, rng)
    return _encoded(value)


def _json_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes the JSON value of one line."""
    lines = data.splitlines() or [b""]
    i = int(rng.integers(len(lines)))
    lines[i] = _json(lines[i], rng)
    return b"\n".join(lines) + b"\n"


def _safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes the header and corrects its length, or changes the length alone."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.7:
        header = _json(header, rng)
        length = len(header)
    else:
        length = _pick((*_LARGE, 100_000_001, 10**9, len(header) + 1, 0, 1), rng)
    return struct.pack("<Q", length) + header + rest


def _svg(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes a number or a reference, or repeats, nests or inserts an element."""
    text = data.decode()
    numbers = list(re.finditer(r"-?\d+(?:\.\d+)?", text))
    parts = list(re.finditer(r"<(?!svg|defs)[a-z]+[^>]*/>", text))
    how = rng.integers(4)
    if how == 0 and numbers:
        found = _pick(numbers, rng)
        new = _pick(("0", "-1", "1e9", "1e-9", "1e39", "nan", "", "#r", "%"), rng)
    elif how == 1 and parts:
        found = _pick(parts, rng)
        times = int(rng.choice((2, 100, 5000)))
        new = _pick((found[0] * times, "<g>" * times + found[0] + "</g>" * times), rng)
    elif how == 2 and parts:
        found = _pick(parts, rng)
        new = _pick(_SVG_PARTS, rng) + found[0]
    else:
        found = _pick(list(re.finditer(r'"[^"]*"', text)), rng)
        new = _pick(('"#g"', '"url(#r)"', '"/outside.png"', '"none"', '""'), rng)
    return (text[: found.start()] + new + text[found.end() :]).encode()


def _png(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes, removes, repeats or moves a chunk, with a valid CRC."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return _bytes(data, rng)
    i = int(rng.integers(len(chunks)))
    how = rng.integers(6)
    if how == 0:
        del chunks[i]
    elif how == 1:
        chunks[i:i] = [chunks[i]] * int(rng.choice((1, 100)))
    elif how == 2:
        chunks.insert(int(rng.integers(len(chunks))), chunks.pop(i))
    else:
        chunks[i] = (chunks[i][0], _bytes(chunks[i][1], rng))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + _crc(kind + body)
        for kind, body in chunks
    )


def _tar(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes a field of a member's header, with a valid checksum."""
    headers = [
        i
        for i in range(0, len(data) - _TAR_BLOCK + 1, _TAR_BLOCK)
        if data[i + 257 : i + 262] == b"ustar"
    ]
    if not headers:
        return _bytes(data, rng)
    place = _pick(headers, rng)
    header = bytearray(data[place : place + _TAR_BLOCK])
    sizes = (
        b"77777777777\0",
        b"00000000000\0",
        b"\x80" + b"\xff" * 11,
        b"-0000000001\0",
    )
    fields: Mapping[str, tuple[int, int, tuple[bytes, ...]]] = {
        "name": (0, 100, (*_PATHS, b"a" * 100, b"\xff\xfe.png", b"x.json", b"x.txt")),
        "size": (124, 12, (*sizes, b"%011o\0" % int(rng.integers(1 << 20)))),
        "type": (156, 1, tuple(b"%c" % c for c in b"0123456SLKDxgX\0")),
        "link": (157, 100, _PATHS),
        "mode": (100, 8, (b"7777777\0", b"0000000\0", b"zzzzzzz\0")),
    }
    start, width, values = _pick(list(fields.values()), rng)
    header[start : start + width] = _pick(values, rng).ljust(width, b"\0")
    if rng.random() < 0.5:  # A link needs both a type and a target.
        header[156:157] = _pick((b"1", b"2"), rng)
        header[157:257] = _pick(_PATHS, rng).ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + _TAR_BLOCK :]


def _zip(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes a member's name or another field in its local or central header."""
    magic = _pick((b"PK\x01\x02", b"PK\x03\x04"), rng)
    places = [i for i in range(len(data) - 4) if data[i : i + 4] == magic]
    if not places:
        return _bytes(data, rng)
    place, found = _pick(places, rng), bytearray(data)
    central = magic == b"PK\x01\x02"
    name_at, field = (46, 28) if central else (30, 26)
    (length,) = struct.unpack_from("<H", data, place + field)
    if rng.random() < 0.5:
        name = _pick((b"../" * 30, b"/outside" * 12, b"\0" * 99, b"a" * 99), rng)[
            :length
        ]
        found[place + name_at : place + name_at + len(name)] = name
    else:
        # Fields: flags, method, CRC and the two sizes.
        offset, form = _pick(((4, "H"), (6, "H"), (12, "I"), (16, "I"), (20, "I")), rng)
        value = _pick(_EXTREMES, rng) % 2 ** (8 * struct.calcsize(form))
        struct.pack_into(f"<{form}", found, place + 2 * central + offset, value)
    return bytes(found)


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def _places(value: Any) -> Any:
    """Yields every (object or list, key) in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys) if isinstance(value, dict | list) else ():
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _encoded(value: Any) -> bytes:
    text = json.dumps(value).replace(f'"{_INFINITE}"', "1e999")
    return text.encode()


def _pick(values: Any, rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


KINDS: Mapping[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "bytes": _bytes,
    "json": _json,
    "json_lines": _json_lines,
    "safetensors": _safetensors,
    "svg": _svg,
    "png": _png,
    "tar": _tar,
    "zip": _zip,
}
"""Mutations by name; all but ``bytes`` keep a format's checksums valid."""
