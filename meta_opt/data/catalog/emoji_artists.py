"""The four artists who draw every emoji, and the npm packages that carry their work."""

import dataclasses
from pathlib import PurePosixPath

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
"""Unicode's emoji groups, without the components of skin tones."""


@dataclasses.dataclass(frozen=True)
class Artist:
    """A set of emoji drawings.

    Attributes:
        name: name of the artist in the dataset.
        package: the npm package.
        version: its pinned version.
        integrity: npm's hash of that version's archive, ``sha512-`` and base64.
        images: folder of the drawings in the archive.
        suffix: file extension of the drawings; ``.svg`` files are rendered.
        metadata: files of the archive with names and tags, if any.
        licence: SPDX identifier of the drawings' licence.
    """

    name: str
    package: str
    version: str
    integrity: str
    images: PurePosixPath
    suffix: str
    licence: str
    metadata: tuple[PurePosixPath, ...] = ()

    @property
    def archive(self) -> str:
        """File name of the archive from ``npm pack``."""
        return f"{self.folder}.tgz"

    @property
    def folder(self) -> str:
        """The folder that the archive is unpacked to."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}"


GOOGLE = Artist(
    name="google",
    package="emoji-datasource-google",
    version="16.0.0",
    integrity=(
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQ"
        "Qlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="
    ),
    images=PurePosixPath("package/img/google/64"),
    suffix=".png",
    licence="Apache-2.0",
    metadata=(PurePosixPath("package/emoji.json"),),
)
TWITTER = Artist(
    name="twitter",
    package="emoji-datasource-twitter",
    version="16.0.0",
    integrity=(
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4"
        "pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ=="
    ),
    images=PurePosixPath("package/img/twitter/64"),
    suffix=".png",
    licence="CC-BY-4.0",
)
OPENMOJI = Artist(
    name="openmoji",
    package="openmoji",
    version="17.0.0",
    integrity=(
        "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmv"
        "T/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w=="
    ),
    images=PurePosixPath("package/color/svg"),
    suffix=".svg",
    licence="CC-BY-SA-4.0",
    metadata=(PurePosixPath("package/data/openmoji.json"),),
)
FLUENT = Artist(
    name="fluent",
    package="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    integrity=(
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF"
        "0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
    ),
    images=PurePosixPath("package/assets"),
    suffix=".webp",
    licence="MIT",
)

ARTISTS = (GOOGLE, TWITTER, OPENMOJI, FLUENT)
