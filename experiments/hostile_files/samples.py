"""A small valid file of each format, as bytes."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image


def pixels(seed: int = 0, side: int = 12) -> np.ndarray:
    """Returns an image, uint8 [side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    """Returns an image file in a format that Pillow writes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def grey16(form: str) -> bytes:
    """Returns a 16-bit greyscale image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(buffer, form)
    return buffer.getvalue()


def animation(form: str, frames: int = 5) -> bytes:
    """Returns an animation of noise."""
    first, *others = (Image.fromarray(pixels(i)) for i in range(frames))
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=others, duration=50)
    return buffer.getvalue()


def sound(form: str, subtype: str | None = None) -> bytes:
    """Returns an audio file with 0.2 s of a tone in stereo."""
    import soundfile

    times = np.arange(1600) / 8000
    wave = 0.4 * np.sin(2 * np.pi * 440 * times)
    buffer = io.BytesIO()
    both = np.stack([wave, wave], axis=1)
    soundfile.write(buffer, both, 8000, format=form, subtype=subtype)
    return buffer.getvalue()


SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10">
<defs><linearGradient id="g"><stop offset="0" stop-color="red"/></linearGradient></defs>
<g transform="scale(1.5)"><rect id="r" x="1" y="2" width="5" height="4" fill="url(#g)"/>
<use href="#r" x="4"/><path d="M0 0 C 1 2 3 4 5 6 Z" stroke="blue"/></g>
<text x="1" y="9">a</text></svg>"""


def tar(members: Mapping[str, bytes], compression: str = "") -> bytes:
    """Returns a tar file whose members have no modification times."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def archive(members: Mapping[str, bytes]) -> bytes:
    """Returns a zip file; members of more than a few bytes are compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tensors() -> dict[str, np.ndarray]:
    """Returns arrays of several dtypes and ranks."""
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "a.bias": rng.normal(size=4).astype(np.float16),
        "b": np.arange(6, dtype=np.int64),
        "c": np.zeros((), np.float32),
    }


def npy(array: np.ndarray) -> bytes:
    """Returns a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ctranslate2() -> bytes:
    """Returns a CTranslate2 ``model.bin`` with two variables."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text("Spec"), struct.pack("<II", 3, 2)]
    for name, array in (
        ("w", np.ones((2, 3), np.float32)),
        ("b", np.ones(4, np.float16)),
    ):
        kind = {"f4": 0, "f2": 4}[array.dtype.str[1:]]
        parts += [text(name), struct.pack("<B", array.ndim)]
        parts += [struct.pack("<I", n) for n in array.shape]
        parts += [struct.pack("<BI", kind, array.nbytes), array.tobytes()]
    return b"".join(parts)


def torch_legacy() -> bytes:
    """Returns a state dict with one tensor [2, 3] in the format before PyTorch 1.6."""
    empty = b"ccollections\nOrderedDict\n)R"
    storage = (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aX\x03\0\0\0cpuK\x06NtQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89"
        + empty
        + b"tR"
    )
    state = b"\x80\x02" + empty + b"(X\x01\0\0\0w" + tensor + b"u."
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return (
        b"".join(pickle.dumps(x, 2) for x in heads)
        + state
        + pickle.dumps(["a"], 2)
        + struct.pack("<Q", 6)
        + np.arange(6, dtype=np.float32).tobytes()
    )


def dumped(value: Any) -> bytes:
    """Returns JSON in UTF-8."""
    return json.dumps(value).encode()


def lines(*values: Any) -> bytes:
    """Returns JSON Lines."""
    return b"".join(dumped(value) + b"\n" for value in values)
