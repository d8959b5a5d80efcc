"""Safety checks of SVG documents before they are rendered.

The renderer reads any file on the machine that a document refers to as an image, and a
document of a few hundred bytes can exhaust its time or stack by nested groups and
recursive references.
"""

import base64
import binascii
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 200
"""Largest nesting depth; at a thousand the renderer's stack overflows."""
MAX_ELEMENTS = 300_000
"""Largest number of elements with references (`use`, patterns, masks) expanded, which
takes seconds to render."""
_MAX_OCTAVES = 20
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
_PICTURES = ("image", "feImage")
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")\s]+)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_DATA = re.compile(r"data:image/(?:png|jpe?g|gif|webp);base64,", re.IGNORECASE)


def checked_svg(svg: str, check_picture: Callable[[bytes], None]) -> str:
    """Returns a document that can be rendered in seconds and reads no other file.

    Images that it refers to by path or URL are removed; embedded ones are kept.

    Args:
        svg: the document.
        check_picture: raises ValueError or OSError for the bytes of an embedded image
            that is too large or damaged.

    Returns:
        The document, without references to images in other files.

    Raises:
        ValueError: invalid XML; nesting deeper than `MAX_DEPTH`; more than
            `MAX_ELEMENTS` with references expanded; or noise with too many octaves.
    """
    root = _parse(svg)
    removed = False
    for parent in root.iter():
        for child in list(parent):
            if _name(child) in _PICTURES and not _stays(child, check_picture):
                parent.remove(child)
                removed = True
        octaves = parent.get("numOctaves", "1").strip()
        # Existing drawings have fractions here, which the renderer truncates, and
        # words, for which it uses the default.
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
        # Parse incrementally, so that a tree that is nested too deeply is never built.
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
    """Raises ValueError for too many elements with references expanded."""
    by_id: dict[str, ElementTree.Element] = {}
    styled: list[str] = []
    for element in root.iter():
        by_id.setdefault(element.get("id", ""), element)
        if _name(element) == "style":
            styled += _REFERENCE.findall(element.text or "")
    # An iterative post-order traversal: children and targets before the element.
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
        # An element without a size yet is an ancestor: a reference to itself draws
        # nothing.
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
    """Children and referenced elements, with the number of times each is drawn."""
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
