"""A user's things, made small: a SigLIP or CLIP folder, and pictures with captions."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from meta_opt.models import huggingface
from meta_opt.models.vision_text import (
    TowerConfig,
    VisionText,
    VisionTextConfig,
    named_config,
)

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 50, 220),
    "yellow": (230, 220, 40),
    "black": (10, 10, 10),
}
PLACES = ("left", "right", "top", "bottom")
SIZES = ("small", "large")
CASES = [(c, p, s) for c in COLOURS for p in PLACES for s in SIZES]
"""40 of them."""
SENTENCES = [f"a {size} {colour} square at the {p}" for colour, p, size in CASES]


def write_tokenizer(folder: Path, kind: str) -> int:
    """A word for a token; returns how many there are."""
    words = sorted({word for text in SENTENCES for word in text.split()})
    siglip = kind == "siglip"
    special = ["<unk>", "</s>"] if siglip else ["<unk>"]
    tokens = [*special, *words, *([] if siglip else ["<start>", "<end>"])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if siglip:
        end, template = ("</s>", 1), "$A </s>"
        ends = [end]
    else:
        tokenizer.normalizer = normalizers.Lowercase()
        ends = [(t, vocabulary[t]) for t in ("<start>", "<end>")]
        end, template = ends[1], "<start> $A <end>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "SiglipTokenizer" if siglip else "CLIPTokenizer",
        "pad_token": end[0],
        "model_max_length": 10,
    }
    if siglip:
        about["do_lower_case"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return len(tokens)


def small_config(kind: str, vocab_size: int) -> VisionTextConfig:
    """The named size's architecture, small."""
    named = named_config("B/16" if kind == "siglip" else "L/14")

    def small(tower: TowerConfig) -> TowerConfig:
        sizes = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
        return TowerConfig(**{**vars(tower), **sizes})

    changes = {
        "image_size": 16,
        "patch_size": 8,
        "vision": small(named.vision),
        "text": small(named.text),
        "embed_dim": 32,
        "vocab_size": vocab_size,
        "text_length": 10,
    }
    if kind == "clip":
        changes |= {"pad_id": vocab_size - 1, "end_id": vocab_size - 1}
    return VisionTextConfig(**{**vars(named), **changes})


def write_folder(folder: Path, kind: str = "siglip") -> Path:
    """A random model of that kind as Transformers has it, with its tokenizer."""
    folder.mkdir(parents=True)
    config = small_config(kind, write_tokenizer(folder, kind))
    model = nnx.jit(lambda: VisionText(config, rngs=nnx.Rngs(0)))()
    huggingface.save(folder, model)
    return folder


def write_pictures(folder: Path, broken: tuple[int, ...] = ()) -> Path:
    """40 PNGs of several sizes and ``captions.jsonl``; some may be no pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for i, (colour, place, size) in enumerate(CASES):
        height, width = rng.integers(24, 48, 2)
        pixels = rng.integers(200, 256, (height, width, 3), np.uint8)
        part = 3 if size == "small" else 2
        rows = slice(0, height // part) if place == "top" else slice(None)
        rows = slice(-(height // part), None) if place == "bottom" else rows
        columns = slice(0, width // part) if place == "left" else slice(None)
        columns = slice(-(width // part), None) if place == "right" else columns
        pixels[rows, columns] = COLOURS[colour]
        file = folder / f"{i:02}.png"
        Image.fromarray(pixels).save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:60])
        lines.append(json.dumps({"image": file.name, "text": SENTENCES[i]}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "captions.jsonl"


def run_readme(
    heading: str, folder: Path, flags: Mapping[str, Sequence[str]]
) -> dict[str, subprocess.CompletedProcess]:
    """Runs the commands below a heading of the README, as they stand there.

    Args:
        heading: with its signs; what follows the next heading is left out.
        folder: that they are run in, with the files that they name.
        flags: of each module more flags, so that it ends soon.

    Returns:
        What the last command of each module gave; all ended well.
    """
    root = Path(__file__).parents[1]
    for name in ("configs", "experiments", "meta_opt"):
        (folder / name).symlink_to(root / name)
    text = (root / "README.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"README has no {heading!r}"
    section = re.split(r"\n#+ ", rest)[0]
    ran = {}
    for line in section.splitlines():
        if not line.startswith("python -m experiments."):
            continue
        _, *words = shlex.split(line)
        ran[words[1]] = done = subprocess.run(
            [sys.executable, *words, *(f"--{x}" for x in flags[words[1]])],
            cwd=folder,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    return ran
