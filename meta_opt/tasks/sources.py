"""Real data as arrays in memory, small enough for tasks that train in seconds.

Fields: ``image`` float32 [B, h, w, c] in about [-1, 1]; ``mel`` float32 [B, 32, 24];
``video`` float32 [B, 8, h, w, 3]; ``text`` (letters) and ``words`` int32 [B, L] with 0
as padding; ``feature`` float32 [B, D]; ``target`` float32 [B, n]; ``label`` int32 [B].
"""

import collections
import functools
import importlib.resources
from collections.abc import Callable, Sequence

import numpy as np

from meta_opt.data import (
    bundled_clipart,
    emoji_arrays,
    load_tokenizer,
    source_arrays,
    tfds_source,
)
from meta_opt.data.records import SPLITS
from meta_opt.data.sources.cldr import cldr_arrays
from meta_opt.data.sources.glyphs import glyph_arrays
from meta_opt.data.sources.media_arrays import (
    animated_emoji_arrays,
    asterisk_arrays,
    klettres_arrays,
    tuxpaint_arrays,
)
from meta_opt.tasks.splits import NumpyArrays, Parts

LETTERS = 64
"""Size of the alphabet of `letters`."""
LENGTH = 16
"""Default length of texts in letters; longer texts are truncated."""
WORDS = 512
"""Vocabulary size of `words`; updates of a larger table would dominate the cost."""
_PIECES = 6


def letters(texts: Sequence[str], length: int = LENGTH) -> np.ndarray:
    """Encodes texts as letter ids [B, length]: a-z, digits, space, and others hashed.

    >>> letters(["ab"], 4).tolist()
    [[1, 2, 0, 0]]
    """
    out = np.zeros((len(texts), length), np.int32)
    for row, text in zip(out, texts, strict=True):
        ids = [_letter(c) for c in text.lower()[:length]]
        row[: len(ids)] = ids
    return out


def words(texts: Sequence[str]) -> np.ndarray:
    """Encodes texts as word piece ids [B, 6], modulo `WORDS`."""
    return load_tokenizer().encode(list(texts), _PIECES) % WORDS


def _letter(c: str) -> int:
    if "a" <= c <= "z":
        return ord(c) - ord("a") + 1
    if "0" <= c <= "9":
        return ord(c) - ord("0") + 27
    if c == " ":
        return 37
    return 38 + ord(c) % (LETTERS - 38)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 127.5 - 1.0


@functools.cache
def digits() -> NumpyArrays:
    """scikit-learn's 8x8 digits: 1,797 images of 10 classes."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return {
        "image": (images / 8.0 - 1.0).astype(np.float32).reshape(-1, 8, 8, 1),
        "label": labels.astype(np.int32),
    }


@functools.cache
def cancer() -> NumpyArrays:
    """Wisconsin breast cancer: 569 rows of 30 standardised features, 2 classes."""
    from sklearn.datasets import load_breast_cancer

    rows, labels = load_breast_cancer(return_X_y=True)
    rows = (rows - rows.mean(0)) / rows.std(0)
    return {"feature": rows.astype(np.float32), "label": labels.astype(np.int32)}


@functools.cache
def wine() -> NumpyArrays:
    """scikit-learn's wines: 178 rows of 13 standardised features, 3 classes."""
    from sklearn.datasets import load_wine

    rows, labels = load_wine(return_X_y=True)
    rows = (rows - rows.mean(0)) / rows.std(0)
    return {"feature": rows.astype(np.float32), "label": labels.astype(np.int32)}


@functools.cache
def diabetes() -> NumpyArrays:
    """Progression of diabetes: 442 patients, 10 standardised features each."""
    from sklearn.datasets import load_diabetes

    rows, target = load_diabetes(return_X_y=True)
    rows = (rows - rows.mean(0)) / rows.std(0)
    target = (target - target.mean()) / target.std()
    return {
        "feature": rows.astype(np.float32),
        "target": target.astype(np.float32)[:, None],
    }


@functools.cache
def friedman() -> NumpyArrays:
    """Friedman's first synthetic regression: 2,000 rows, 5 of 10 features relevant."""
    from sklearn.datasets import make_friedman1

    rows, target = make_friedman1(2000, noise=0.5, random_state=0)
    target = (target - target.mean()) / target.std()
    return {
        "feature": (2 * rows - 1).astype(np.float32),
        "target": target.astype(np.float32)[:, None],
    }


def _photo(name: str, factor: int) -> np.ndarray:
    """Returns a sample photo of scikit-learn, downsampled by averaging, in [-1, 1]."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name).astype(np.float32) / 127.5 - 1.0
    h, w = (n // factor for n in pixels.shape[:2])
    pixels = pixels[: h * factor, : w * factor]
    return pixels.reshape(h, factor, w, factor, 3).mean((1, 3))


@functools.cache
def photo_pixels(frequencies: int = 16) -> NumpyArrays:
    """Pixel colours of a 53 x 80 photo, with Fourier features of their positions."""
    photo = _photo("flower.jpg", 8)
    h, w = photo.shape[:2]
    place = np.stack(np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij"), -1)
    rates = np.random.default_rng(0).normal(0.0, 12.0, (2, frequencies))
    angles = place.reshape(-1, 2) @ rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return {
        "feature": waves.astype(np.float32),
        "target": photo.reshape(-1, 3).astype(np.float32),
    }


@functools.cache
def photo_patches(size: int = 8) -> NumpyArrays:
    """Patches of two photos at half resolution, ``image`` [B, 8, 8, 3]."""
    squares = []
    for photo in (_photo(name, 2) for name in ("china.jpg", "flower.jpg")):
        h, w = (n // size for n in photo.shape[:2])
        cut = photo[: h * size, : w * size].reshape(h, size, w, size, 3)
        squares.append(cut.transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3))
    return {"image": np.concatenate(squares).astype(np.float32)}


@functools.cache
def descriptions(length: int = 32) -> NumpyArrays:
    """scikit-learn's descriptions of its data sets, in pieces of ``length`` letters."""
    folder = importlib.resources.files("sklearn.datasets.descr")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".rst"))
    whole = " ".join((folder / name).read_text("utf-8") for name in names)
    plain = " ".join(whole.split())
    pieces = [plain[i : i + length] for i in range(0, len(plain) - length, length)]
    return {"text": letters(pieces, length)}


@functools.cache
def emoji(artist: str, data_dir: str | None, size: int = 16) -> NumpyArrays:
    """Emoji of one artist with their names; 9 categories."""
    pixels, labels, _ = emoji_arrays("train", artist, data_dir, size)
    source = tfds_source("emoji", "train", data_dir, artists=(artist,))
    names = [captions[0] for captions in source.captions]
    return {
        "image": _pixels(pixels),
        "label": labels.astype(np.int32),
        "text": letters(names),
        "words": words(names),
    }


@functools.cache
def clipart(size: int = 16, with_words: bool = False) -> NumpyArrays:
    """The bundled shard of Open Clip Art, all splits, with titles; 15 classes."""
    parts = [bundled_clipart(s) for s in ("train", "validation", "test")]
    pairs = [source_arrays(source, size) for source in parts]
    texts = [captions[0] for source in parts for captions in source.captions]
    found = {
        "image": _pixels(np.concatenate([images for images, _ in pairs])),
        "label": np.concatenate([labels for _, labels in pairs]).astype(np.int32),
        "text": letters(texts),
    }
    return {**found, "words": words(texts)} if with_words else found


def _parts(read: Callable[[str], NumpyArrays]) -> Parts:
    train, validation, test = (read(split) for split in SPLITS)
    return train, validation, test


@functools.cache
def glyphs() -> Parts:
    """Letters and digits in matplotlib's fonts, split by font; 62 classes."""

    def read(split: str) -> NumpyArrays:
        pixels, labels, _, _ = glyph_arrays(split)
        return {"image": _pixels(pixels[..., None]), "label": labels.astype(np.int32)}

    return _parts(read)


@functools.cache
def cldr() -> Parts:
    """Names of countries and languages in 61 languages, split by named entity."""

    def read(split: str) -> NumpyArrays:
        texts, labels, _ = cldr_arrays(split)
        return {"text": letters(texts), "label": labels.astype(np.int32)}

    return _parts(read)


@functools.cache
def klettres(data_dir: str | None) -> Parts:
    """Spoken letters and syllables; the classes are 18 languages."""

    def read(split: str) -> NumpyArrays:
        mel, labels, _ = klettres_arrays(split, data_dir)
        return {"mel": mel, "label": labels.astype(np.int32)}

    return _parts(read)


@functools.cache
def asterisk(data_dir: str | None) -> Parts:
    """Telephone prompts, split by prompt; the classes are five speakers."""

    def read(split: str) -> NumpyArrays:
        found = asterisk_arrays(split, data_dir)
        return {"mel": found.mel, "label": found.voice.astype(np.int32)}

    return _parts(read)


@functools.cache
def tuxpaint(data_dir: str | None, size: int = 16) -> Parts:
    """Tux Paint stamps: image, English caption, spoken caption; 10 categories."""

    def read(split: str) -> NumpyArrays:
        found = tuxpaint_arrays(split, data_dir, size)
        return {
            "image": _pixels(found["image"]),
            "label": found["label"].astype(np.int32),
            "text": letters(found["caption"]),
            "words": words(found["caption"]),
            "mel": found["mel"],
        }

    return _parts(read)


@functools.cache
def tuxpaint_captions(data_dir: str | None, languages: int = 30) -> Parts:
    """Captions of stamps in the most frequent languages, which are the classes."""
    found = {s: tuxpaint_arrays(s, data_dir)["translations"] for s in SPLITS}
    counts = collections.Counter(
        language for pairs in found["train"] for _, language in pairs
    )
    names = sorted(name for name, _ in counts.most_common(languages))

    def read(split: str) -> NumpyArrays:
        rows = [row for pairs in found[split] for row in pairs if row[1] in names]
        return {
            "text": letters([text for text, _ in rows]),
            "label": np.asarray([names.index(name) for _, name in rows], np.int32),
        }

    return _parts(read)


@functools.cache
def animated_emoji(data_dir: str | None, size: int = 16) -> Parts:
    """Animated emoji: clips of eight frames with names; the classes are categories."""

    def read(split: str) -> NumpyArrays:
        found = animated_emoji_arrays(split, data_dir, size)
        return {
            "video": _pixels(found["video"]),
            "label": found["label"].astype(np.int32),
            "text": letters(found["name"]),
        }

    return _parts(read)


ENCODER_DATASET = {"minilm": "emoji", "whisper": "klettres", "efficientnet": "emoji"}
"""Data set that each encoder's last layer is trained on in meta-training."""
_MODALITY = {"minilm": "text", "whisper": "audio", "efficientnet": "image"}


@functools.cache
def encoder_layer(
    encoder: str, data_dir: str | None
) -> tuple[Parts, dict[str, np.ndarray]]:
    """Returns the inputs of an encoder's last layer, and the weights of that layer.

    Args:
        encoder: name of the encoder, a key of `ENCODER_DATASET`.
        data_dir: folder of prepared datasets and encoders; None for the default.

    Returns:
        Arrays ``x``, ``real`` (mask of sequences) and ``label`` of each split; weights
        by dotted name, with kernels ``[out, in]``.
    """
    from flax import nnx

    from meta_opt.workloads.multimodal_inputs import InputsConfig, read_inputs

    task = {"emoji": "emoji_pictures", "klettres": "klettres_language"}
    inputs = read_inputs(
        InputsConfig(
            task[ENCODER_DATASET[encoder]],
            data_dir or "",
            max_examples=600,
            text_length=8,
            trainable_layers={"image": 1, "text": 1, "audio": 1},
            pool_size={"audio": 4},
        )
    )
    modality = _MODALITY[encoder]
    state = nnx.to_flat_state(nnx.state(inputs.encoders[modality]))
    weights = {}
    for path, variable in state:
        name, value = "/".join(map(str, path)), np.asarray(variable[...])
        if name.startswith("layers/"):
            name, value = name.removeprefix("layers/"), value[0]
        weights[_dotted(name)] = value.T if value.ndim == 2 else value

    def read(split: str) -> NumpyArrays:
        arrays = inputs.splits[split]
        found = {"label": np.asarray(arrays["label"], np.int32)}
        if isinstance(arrays[modality], tuple):
            x, real = arrays[modality]
            return {**found, "x": x.astype(np.float32), "real": real}
        return {**found, "x": arrays[modality].astype(np.float32)}

    return _parts(read), weights


def _dotted(path: str) -> str:
    """Renames ``attention/query/kernel`` to ``query.weight`` and so on."""
    parts = path.removeprefix("blocks/0/").split("/")
    if parts[:2] == ["depthwise", "conv"]:
        return "depthwise"
    leaf = {"kernel": "weight", "scale": "weight"}.get(parts[-1], parts[-1])
    if parts[0] in ("attention", "mlp"):
        return f"{parts[1]}.{leaf}"
    if len(parts) == 3:
        return f"{parts[0]}.{leaf}" if parts[1] == "conv" else f"{parts[0]}_bn.{leaf}"
    return f"{parts[0]}.{leaf}"
