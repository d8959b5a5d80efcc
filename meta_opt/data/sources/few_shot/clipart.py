"""Thirty classes of Open Clip Art by folder and keyword, and the bundled drawings."""

import functools
from collections.abc import Sequence
from pathlib import Path

from meta_opt.data.catalog.builders.clipart_files import library_folders, read_library
from meta_opt.data.preprocessing.images import encode_png
from meta_opt.data.sources.clipart import bundled_clipart
from meta_opt.data.sources.few_shot.items import Item

_EUROPE = "signs_and_symbols/flags/europe"

CLASS_FOLDERS: dict[str, str] = {
    "animals/bird": "bird",
    "animals/birds": "bird",
    "animals/bugs": "insect",
    "animals/mammals": "mammal",
    "buildings": "building",
    "buildings/furniture": "",
    "computer/hardware": "computer hardware",
    "food/beverages": "drink",
    "food/breads_and_carbs": "savoury food",
    "food/dairy": "savoury food",
    "food/desserts": "dessert",
    "food/fruit": "fruit",
    "food/meats_and_eggs": "savoury food",
    "food/vegetables": "savoury food",
    "geography": "map",
    "geography/astronomy": "",
    "office": "office supply",
    "people": "person",
    "people/bodypart": "",
    "people/clothing": "clothing",
    "people/smilies": "smiley",
    "people/stickmen": "stick figure",
    "plants": "plant",
    "recreation/holiday": "celebration",
    "recreation/music": "music",
    "recreation/party": "celebration",
    "recreation/sports": "sport",
    "shapes/arrows": "arrow",
    "shapes/jigsaw": "jigsaw piece",
    "signs_and_symbols/flags/africa": "African flag",
    "signs_and_symbols/flags/america": "American flag",
    "signs_and_symbols/flags/asia": "Asian flag",
    _EUROPE: "European flag",
    # Regions and towns, in coats of arms rather than flags.
    f"{_EUROPE}/france": "",
    "signs_and_symbols/map_symbols": "map symbol",
    "special/patterns": "pattern",
    "tools": "tool",
    "tools/toys": "",
    "tools/weapons": "",
    "transportation": "vehicle",
    "transportation/roadsigns": "road sign",
}
"""Class of the images in a folder and below it; "" for none.

The deepest listed folder decides, so that no image is in two classes. A class is a name
of one or two words that describes all images of its folders, which together have at
least 40 distinct images; folders of mixed contents (the library's
``signs_and_symbols``, ``computer``, ``food`` and ``animals`` themselves) have no class.
"""

KEYWORD_CLASSES: dict[tuple[str, str], str] = {
    ("transportation", "roadsign"): "road sign",
}
"""Class of the images by (top-level folder, keyword).

Keywords have precedence over folders: half of the signs are filed under vehicles.
"""

CLASSES = tuple(sorted({name for name in CLASS_FOLDERS.values() if name}))
"""The 30 classes."""


def class_of(path: str, keywords: Sequence[str] = ()) -> str:
    """Class of an image by its path in the library and its keywords; "" for none.

    >>> class_of("animals/mammals/dogs/pug.png"), class_of("animals/snake.png")
    ('mammal', '')
    >>> class_of("transportation/horse.png", ["Roadsign"])
    'road sign'
    """
    for keyword in keywords:
        place = path.split("/")[0], keyword.casefold()
        if place in KEYWORD_CLASSES:
            return KEYWORD_CLASSES[place]
    folder = path
    while "/" in folder:
        folder = folder.rpartition("/")[0]
        if folder in CLASS_FOLDERS:
            return CLASS_FOLDERS[folder]
    return ""


def openclipart_items(data_dir: Path) -> list[Item]:
    """The classified images of the library, as SVG documents.

    Args:
        data_dir: the folder of datasets.

    Raises:
        MissingDataError: missing packages; the message has the command that fetches
            them.
    """
    folders = library_folders(data_dir / "downloads" / "manual")
    return [
        Item(file.path, class_name, file.svg.read_bytes, is_svg=True)
        for file in read_library(*folders)
        if (class_name := class_of(file.path, file.keywords))
    ]


def bundled_items() -> list[Item]:
    """The bundled drawings, 64 x 64 pixels, labelled by category."""
    found = []
    for split in ("train", "validation", "test"):
        source = bundled_clipart(split)
        assert source.keys is not None
        for key, label, pixels in zip(
            source.keys, source.labels, source.images(), strict=True
        ):
            read = functools.partial(encode_png, pixels)
            found.append(Item(key, source.class_names[label], read))
    return sorted(found, key=lambda item: item.key)
