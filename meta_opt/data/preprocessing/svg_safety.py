"""What an SVG document may do before it is rendered.

The renderer reads images that a document names wherever they are on the machine, and
its time and stack grow with what a document of a few hundred bytes can ask for: groups
in each other, drawings that use drawings that use drawings.
"""

import base64
import binascii
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 200
"""Elements in each other; at a thousand the renderer's stack overflows."""
MAX_ELEMENTS = 300_000
"""With all that `use`, patterns, masks and the like put in again: seconds."""
_MAX_OCTAVES = 20
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
_PICTURES = ("image", "feImage")
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")\s]+)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_DATA = re.compile(r"data:image/(?:png|jpe?g|gif|webp);base64,", re.IGNORECASE)


def checked_svg(svg: str, check_picture: Callable[[bytes], None]) -> str:
    """A document that can be rendered in seconds, and that reads no other file.

    Images that it names by a path or an address are left out, as where they are
    absent; those inside of it stay.

    Args:
        svg: the document.
        check_picture: raises ValueError or OSError for the bytes of an image inside of
            it that is too large or damaged.

    Returns:
        The document as it was given, or without such images.

    Raises:
        ValueError: no XML; elements in more than `MAX_DEPTH` others; more than
            `MAX_ELEMENTS` where all that is used again is counted again; or noise of
            very many octaves.
    """
    root = _parse(svg)
    removed = False
    for parent in root.iter():
        for child in list(parent):
            if _name(child) in _PICTURES and not _stays(child, check_picture):
                parent.remove(child)
                removed = True
        octaves = parent.get("numOctaves", "1").strip()
        # Drawings in use have fractions here, which the renderer cuts off, and words,
        # which it takes for the default.
        number = _NUMBER.match(octaves)
        if number is not None and float(number[0]) > _MAX_OCTAVES:
            raise ValueError(f"noise of numOctaves={octaves[:20]}, over {_MAX_OCTAVES}")
    _check_elements(root)
    if not removed:
        return svg
    return ElementTree.tostring(root, encoding="unicode")


def _parse(svg: str) -> ElementTree.Element:
    parser: Any = ElementTree.XMLPullParser(["start", "end"])
    depth, root = 0, None
    try:
        # By parts: what is nested too deeply is not built.
        for start in range(0, len(svg), 1 << 16):
            parser.feed(svg[start : start + (1 << 16)])
            for event, element in parser.read_events():
                assert isinstance(element, ElementTree.Element)
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if depth > MAX_DEPTH:
                    raise ValueError(f"elements in more than {MAX_DEPTH} others")
        parser.close()
    except ElementTree.ParseError as error:
        raise ValueError(f"invalid XML: {error}") from None
    if root is None:
        raise ValueError("invalid XML: it is empty")
    return root


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _stays(element: ElementTree.Element, check: Callable[[bytes], None]) -> bool:
    for name in _HREFS:
        href = element.get(name, "").strip()
        if not href or href.startswith("#"):
            continue
        found = _DATA.match(href)
        if found is None:
            return False
        try:
            check(base64.b64decode(href[found.end() :]))
        except (binascii.Error, OSError, ValueError):
            return False
    return True


def _check_elements(root: ElementTree.Element) -> None:
    """Raises ValueError for too many elements, uses counted again."""
    by_id: dict[str, ElementTree.Element] = {}
    styled: list[str] = []
    for element in root.iter():
        by_id.setdefault(element.get("id", ""), element)
        if _name(element) == "style":
            styled += _REFERENCE.findall(element.text or "")
    # Without recursion: the children and targets of an element before itself.
    sizes: dict[ElementTree.Element, int] = {}
    begun: set[ElementTree.Element] = set()
    stack, looked_at = [root], 0
    while stack:
        element = stack[-1]
        if element in sizes:
            stack.pop()
            continue
        parts = list(_parts(element, by_id, styled))
        looked_at += len(parts)
        if looked_at > 2 * MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS:,} elements and references")
        if element not in begun:
            begun.add(element)
            stack += [part for part, _ in parts if part not in sizes]
            continue
        # What is begun and has no size is above: a use of itself, which draws nothing.
        size = 1 + sum(sizes.get(part, 0) * times for part, times in parts)
        if size > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS:,} elements, uses counted again")
        sizes[element] = size
        stack.pop()


def _parts(
    element: ElementTree.Element,
    by_id: Mapping[str, ElementTree.Element],
    styled: list[str],
) -> Iterator[tuple[ElementTree.Element, int]]:
    """Children and what an element refers to, and how often that is drawn."""
    for child in element:
        yield child, 1
    names = [h[1:] for n in _HREFS if (h := element.get(n, "").strip()).startswith("#")]
    names += styled if "class" in element.attrib else []
    vertices = 1
    for key, value in element.attrib.items():
        found = _REFERENCE.findall(value)
        names += found
        if found and "marker" in f"{key} {value}":
            shape = element.get("d", "") + element.get("points", "")
            vertices = 1 + len(re.findall(r"[-+.\d]+", shape)) // 2
    for name in names:
        if name in by_id:
            yield by_id[name], vertices
