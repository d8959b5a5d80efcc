"""Archives: tar and zip files of samples and of packages."""

import gzip
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.hostile_files import samples
from experiments.hostile_files.datasets import read_pictures
from experiments.hostile_files.format import Files, Format, of_file

_MEMBERS = {"a/x.txt": b"first", "a/b/y.txt": b"second " * 50, "a/z": b""}


def _tar_of_pairs() -> bytes:
    return samples.tar(
        {
            "a.png": samples.picture("PNG"),
            "a.txt": b"a cat",
            "b.jpg": samples.picture("JPEG"),
            "b.json": samples.dumped({"text": "a dog", "split": "train"}),
        }
    )


def _wheel(folder: Path) -> Any:
    from meta_opt.data.catalog.packages import PypiPackage, unpack

    package = PypiPackage("a", "1", "", "a.whl", ("a",))
    unpack(package, folder / "a.whl", folder / "out")


def _npm(folder: Path) -> Any:
    from meta_opt.data.catalog.packages import NpmPackage, unpack

    package = NpmPackage("a", "1", "", "a.tgz", ("a",))
    # The mutations damage the uncompressed archive; damaged gzip data would only test
    # the decompressor.
    (folder / "a.tgz").write_bytes(gzip.compress((folder / "a.tar").read_bytes(), 1))
    unpack(package, folder / "a.tgz", folder / "out")


def _of_package(
    name: str, data: Callable[[], bytes], read: Callable[[Path], Any], kind: str
) -> Format:
    from meta_opt.data.catalog.packages import PackageError

    return Format(lambda: {name: data()}, read, {name: kind}, errors=(PackageError,))


def _shard() -> Files:
    line = {
        "file": "0.png",
        "path": "animals/cat",
        "title": "cat",
        "keywords": ["pet"],
        "split": "train",
        "category": "animals",
    }
    data = samples.archive(
        {"0.png": samples.picture("PNG"), "metadata.jsonl": samples.lines(line)}
    )
    about = {"sha256": hashlib.sha256(data).hexdigest(), "class_names": ["animals"]}
    return {"openclipart64.zip": data, "openclipart64.json": samples.dumped(about)}


def _read_shard(folder: Path) -> Any:
    from meta_opt.data.sources.clipart import read_shard

    return read_shard(folder, "train").images()


FORMATS: Mapping[str, Format] = {
    "webdataset_tar": of_file("a.tar", _tar_of_pairs, read_pictures, "tar"),
    "wheel_zip": _of_package("a.whl", lambda: samples.archive(_MEMBERS), _wheel, "zip"),
    "npm_tar": _of_package("a.tar", lambda: samples.tar(_MEMBERS), _npm, "tar"),
    "bundled_zip": Format(
        _shard,
        _read_shard,
        {"openclipart64.zip": "zip", "openclipart64.json": "json"},
        sealed=("openclipart64.json", "openclipart64.zip"),
    ),
}
