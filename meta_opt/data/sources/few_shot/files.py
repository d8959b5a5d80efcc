r"""The data set as files: PNG images, and JSONL files of the package's own schema.

Layout of the folder, of every width (``100``, ``200``, ...)::

    dataset.json                   classes, counts, settings, what was left out
    100/images/01_arrow/00.png     one folder per class, images are numbered
    100/phase_1.jsonl              the training samples of phase 1, and so on
    100/phases_1_to_2.jsonl        those of phases 1 and 2, and so on
    100/train.jsonl                those of all phases
    100/validation.jsonl
    100/test.jsonl

A line is ``{"image": "images/01_arrow/00.png", "prompt": ..., "target": "{\"category\":
\"arrow\"}", "label": "arrow", "split": "train"}``, which
`meta_opt.data.sources.jsonl_samples.read_samples` reads. The same number denotes the
same image at all widths.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from meta_opt.data.preprocessing.images import encode_png
from meta_opt.data.preprocessing.near_duplicates import MAX_BITS, MAX_COLOUR
from meta_opt.data.preprocessing.prompts import fill_template
from meta_opt.data.sources.few_shot.items import Item
from meta_opt.data.sources.few_shot.protocol import (
    Choice,
    Chosen,
    FewShotConfig,
    choose,
)
from meta_opt.text_files import write_json

DESCRIPTION = "dataset.json"


def answer_of(class_name: str) -> str:
    """The expected answer for images of a class.

    >>> answer_of("road sign")
    '{"category": "road sign"}'
    """
    return json.dumps({"category": class_name}, ensure_ascii=False)


def write_dataset(
    out: str | os.PathLike,
    classes: Mapping[str, Sequence[Item]],
    config: FewShotConfig,
    source: str = "",
) -> dict[str, Any]:
    """Chooses and splits the images, and writes the data set atomically.

    Args:
        out: the output folder, which must be empty or not exist.
        classes: the items of each class, see
            `meta_opt.data.sources.few_shot.items.by_class`.
        config: settings of the protocol.
        source: origin of the images, for the description.

    Returns:
        The contents of ``dataset.json``: classes, counts, settings, excluded images.

    Raises:
        ValueError: the folder is not empty; or as `choose`.
        UnreadableFilesError: more images are unreadable than the config allows.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} already exists; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    choice = choose(classes, config)
    about = _description(choice, config, source)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        scratch = Path(name) / "dataset"
        scratch.mkdir()
        bar = tqdm(total=len(config.widths) * len(choice.chosen), unit="class")
        with bar:
            for width in config.widths:
                bar.set_description(f"{width} px")
                _write_width(scratch / str(width), width, choice, about["prompt"], bar)
        write_json(scratch / DESCRIPTION, about)
        # Replaces an empty folder.
        os.replace(scratch, out)
    return about


def _description(choice: Choice, config: FewShotConfig, source: str) -> dict[str, Any]:
    names = list(choice.chosen)
    every = [one for chosen in choice.chosen.values() for one in chosen]
    return {
        "source": source,
        "classes": names,
        "prompt": fill_template(config.prompt, categories=", ".join(names)),
        "counts": {
            split: sum(one.split == split for one in every)
            for split in ("train", "validation", "test")
        },
        "pictures": {
            name: [x.item.key for x in c] for name, c in choice.chosen.items()
        },
        "left_out": {
            "unreadable": dict(choice.unreadable),
            "copies": choice.copies,
            "near_duplicates_of_another_class": choice.ambiguous,
        },
        "near_duplicates": {"hash_bits": MAX_BITS, "colour": MAX_COLOUR},
        "settings": {**dataclasses.asdict(config), "widths": list(config.widths)},
    }


def _write_width(
    folder: Path, width: int, choice: Choice, prompt: str, bar: Any
) -> None:
    lines: list[tuple[Chosen, str]] = []
    for number, (name, chosen) in enumerate(choice.chosen.items()):
        place = Path("images") / _folder_name(name, number)
        (folder / place).mkdir(parents=True)
        for i, one in enumerate(chosen):
            file = place / f"{i:02}.png"
            try:
                picture = one.item.at_width(width)
            # The file was readable before, but a drawing may be too large at this
            # width.
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{one.item.key} cannot be written at {width} pixels: {error}; "
                    "remove it from the data"
                ) from None
            (folder / file).write_bytes(encode_png(picture))
            row = {
                "image": file.as_posix(),
                "prompt": prompt,
                "target": answer_of(name),
                "label": name,
                "split": one.split,
            }
            lines.append((one, json.dumps(row, ensure_ascii=False) + "\n"))
        bar.update()
    phases = max(one.phase for one, _ in lines)

    def write(name: str, wanted: Sequence[int], split: str = "train") -> None:
        found = [x for one, x in lines if one.split == split and one.phase in wanted]
        (folder / f"{name}.jsonl").write_text("".join(found), encoding="utf-8")

    for phase in range(1, phases + 1):
        write(f"phase_{phase}", [phase])
        if 1 < phase < phases:
            write(f"phases_1_to_{phase}", range(1, phase + 1))
    write("train", range(1, phases + 1))
    write("validation", [0], "validation")
    write("test", [0], "test")


def _folder_name(class_name: str, number: int) -> str:
    """A name that is valid on every file system, made unique by the class's number.

    >>> _folder_name("Arts, Crafts & Sewing", 3)
    '03_arts_crafts_sewing'
    """
    letters = re.sub(r"[^a-z0-9]+", "_", class_name.lower()).strip("_")
    return f"{number:02}_{letters}".rstrip("_")
