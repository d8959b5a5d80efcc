"""Real data of the foreign tasks, as NumPy arrays and lists.

Style validation uses Open Clip Art, Asterisk, names of currencies, scikit-learn's iris,
matplotlib's sample data and the source code of JAX. The foreign suite uses the packages
of `meta_opt.data.catalog.raw_packages` and docstrings of SciPy and scikit-learn. None
of it is part of meta-training.
"""

import ast
import csv
import functools
import gzip
import hashlib
import importlib
import importlib.util
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.data import bundled_clipart, data_dir, source_arrays
from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.catalog.raw_packages import raw_folder
from meta_opt.data.missing import MissingDataError
from meta_opt.tasks.task import Splits
from meta_opt.tensor_files import read_tensors
from meta_opt.text_files import read_json_value, read_text

NumpyArrays = dict[str, np.ndarray]


def need(module: str) -> Any:
    """Imports a library that only these tasks use.

    Args:
        module: ``equinox`` or ``haiku``.

    Raises:
        ImportError: the library is not installed; the message has the command.
    """
    import warnings

    try:
        with warnings.catch_warnings():
            # Haiku 0.0.16 still uses deprecated names of JAX.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"this task family needs {module}: `pip install meta-opt[dev]`"
        ) from error


def deal(
    arrays: Mapping[str, np.ndarray],
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
) -> Splits:
    """Splits randomly into disjoint parts of these sizes.

    Duplicate examples are removed first.

    Raises:
        ValueError: too few examples.
    """
    arrays = _distinct(arrays)
    count = len(next(iter(arrays.values())))
    if train + validation + test > count:
        raise ValueError(
            f"{train} + {validation} + {test} examples requested, but there are only "
            f"{count}"
        )
    order = np.random.default_rng(seed).permutation(count)
    cuts = np.cumsum([train, validation, test])[:-1]
    parts = np.split(order[: train + validation + test], cuts)
    return Splits(*({k: jnp.asarray(v[i]) for k, v in arrays.items()} for i in parts))


def in_turn(
    arrays: Mapping[str, np.ndarray], train: int, validation: int, test: int
) -> Splits:
    """Splits ordered data into consecutive parts; the training part comes first.

    Of duplicate examples only the first is kept.

    Raises:
        ValueError: too few examples.
    """
    arrays = _distinct(arrays)
    count = len(next(iter(arrays.values())))
    if train + validation + test > count:
        raise ValueError(
            f"{train} + {validation} + {test} examples requested, but there are only "
            f"{count}"
        )
    cuts = np.cumsum([0, train, validation, test])
    return Splits(
        *(
            {k: jnp.asarray(v[a:b]) for k, v in arrays.items()}
            for a, b in itertools.pairwise(cuts)
        )
    )


def _distinct(arrays: Mapping[str, np.ndarray]) -> NumpyArrays:
    columns = [np.ascontiguousarray(v) for v in arrays.values()]
    first: dict[bytes, int] = {}
    for i in range(len(columns[0])):
        row = b"".join(column[i].tobytes() for column in columns)
        first.setdefault(hashlib.sha1(row).digest(), i)
    picks = list(first.values())
    return {k: v[picks] for k, v in zip(arrays, columns, strict=True)}


def root_of(folder: str | os.PathLike | None) -> Path:
    """Returns the folder of datasets; None gives the default."""
    return data_dir() if folder is None else Path(folder)


def ids_of_characters(
    texts: Sequence[str], length: int, alphabet: str | None = None
) -> tuple[np.ndarray, int]:
    """Encodes texts as character ids [B, length]; 0 is padding, 1 is unknown.

    Args:
        texts: B texts.
        length: length in characters; longer texts are truncated.
        alphabet: known characters; None for the 94 most frequent ones.

    Returns:
        Ids, int32 [B, length], and the vocabulary size.
    """
    if alphabet is None:
        counts = Counter("".join(texts))
        most = sorted(counts, key=lambda c: (-counts[c], c))[:94]
        alphabet = "".join(sorted(most))
    index = {c: i + 2 for i, c in enumerate(alphabet)}
    out = np.zeros((len(texts), length), np.int32)
    for row, text in zip(out, texts, strict=True):
        ids = [index.get(c, 1) for c in text[:length]]
        row[: len(ids)] = ids
    return out, len(alphabet) + 2


def windows(text: str, length: int, stride: int) -> np.ndarray:
    """Returns (possibly overlapping) windows of a text's bytes, uint8 [N, length].

    Non-ASCII characters are replaced by their nearest ASCII ones or left out.
    """
    import unicodedata

    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore")
    raw = np.frombuffer(plain, np.uint8)
    return np.lib.stride_tricks.sliding_window_view(raw, length)[::stride].copy()


# Sources of style validation


@functools.cache
def clipart_pictures(size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Open Clip Art: uint8 [N, size, size, 3], categories int32 [N], titles."""
    parts = [bundled_clipart(s) for s in ("train", "validation", "test")]
    pairs = [source_arrays(part, size) for part in parts]
    titles = tuple(captions[0] for part in parts for captions in part.captions)
    return (
        np.concatenate([images for images, _ in pairs]),
        np.concatenate([labels for _, labels in pairs]).astype(np.int32),
        titles,
    )


@functools.cache
def currency_names(currencies: int = 40) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of currencies in the languages of CLDR, and the index of the currency.

    Names that equal the currency's code or belong to two of the currencies are left
    out, as are repeated names.
    """
    from babel import Locale

    codes = (
        "USD EUR JPY GBP CNY INR RUB BRL AUD CAD CHF SEK NOK DKK PLN CZK HUF TRY MXN "
        "KRW ZAR ILS THB IDR PHP VND EGP NGN KES ARS CLP COP UAH RON BGN ISK NZD SGD "
        "HKD SAR"
    ).split()[:currencies]
    languages = (
        "en de fr es it pt nl sv da nb fi pl cs sk hu ro bg hr sl lt lv et el tr uk ru "
        "be sr mk sq is ga cy eu ca gl mt af sw zu az uz kk ky hy ka he ar fa ur hi bn "
        "ta te ml kn mr gu pa si ne my km lo th vi id ms fil"
    ).split()
    found: dict[str, set[int]] = {}
    for language in languages:
        names = Locale.parse(language).currencies
        for k, code in enumerate(codes):
            name = names.get(code, code)
            if name != code:
                found.setdefault(name.lower(), set()).add(k)
    rows = sorted((name, ks) for name, ks in found.items() if len(ks) == 1)
    labels = np.asarray([next(iter(ks)) for _, ks in rows], np.int32)
    return tuple(name for name, _ in rows), labels


@functools.cache
def elevations() -> np.ndarray:
    """Elevations along the Jacksboro fault, standardised, float32 [344, 403]."""
    from matplotlib.cbook import get_sample_data

    dem: Any = get_sample_data("jacksboro_fault_dem.npz")
    with dem:
        z = np.asarray(dem["elevation"], np.float32)
    return (z - z.mean()) / z.std()


@functools.cache
def source_text(package: str, most: int = 2_000_000) -> str:
    """Returns the Python source of an installed package, files sorted by path."""
    parts, size = [], 0
    for path in _python_files(package):
        text = path.read_text("utf-8")
        parts.append(text)
        size += len(text)
        if size > most:
            break
    return "\n".join(parts)[:most]


def _python_files(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the sources of {package} are not installed")
    folder = Path(spec.submodule_search_locations[0])
    return (p for p in sorted(folder.rglob("*.py")) if "tests" not in p.parts)


# Sources of the foreign suite


class Icons(NamedTuple):
    """N icons of the Oxygen theme in K folders.

    Attributes:
        images: icons on a white background, uint8 [N, 32, 32, 3].
        labels: indices into ``folders``, int32 [N].
        names: file names of the icons.
        folders: sorted names of the K folders.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    folders: tuple[str, ...]


@functools.cache
def icons(folder: str | None = None) -> Icons:
    """Oxygen's icons of 32 pixels, without duplicate images.

    Raises:
        MissingDataError: the package has not been prepared.
    """
    from PIL import Image

    base = raw_folder("oxygen", root_of(folder)) / "usr/share/icons/oxygen/base/32x32"
    seen, rows = set(), []
    for path in sorted(base.glob("*/*.png")):
        if not path.is_file():  # a link to a file that was not unpacked
            continue
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        with Image.open(path) as file:
            icon = file.convert("RGBA").resize((32, 32))
        white = Image.new("RGBA", icon.size, "white")
        pixels = np.asarray(Image.alpha_composite(white, icon).convert("RGB"))
        rows.append((pixels, path.parent.name, path.stem))
    counts = Counter(folder for _, folder, _ in rows)
    folders = tuple(sorted(name for name, n in counts.items() if n >= 30))
    rows = [row for row in rows if row[1] in folders]
    return Icons(
        np.stack([pixels for pixels, _, _ in rows]),
        np.asarray([folders.index(name) for _, name, _ in rows], np.int32),
        tuple(name for _, _, name in rows),
        folders,
    )


@functools.cache
def sayings(folder: str | None = None) -> tuple[tuple[str, str], ...]:
    """Pairs (text, subject) of Debian's fortunes, distinct, sorted by subject.

    Raises:
        MissingDataError: the package has not been prepared.
    """
    base = raw_folder("fortunes", root_of(folder)) / "usr/share/games/fortunes"
    rows: dict[str, str] = {}
    for path in sorted(base.glob("*")):
        if path.is_file() and not path.suffix and path.name != "translate-me":
            for text in path.read_text("utf-8", "replace").split("\n%\n"):
                words = " ".join(text.split())
                if len(words) >= 20:
                    rows.setdefault(words, path.name)
    return tuple(rows.items())


class Page(NamedTuple):
    """A manual page: its name, its section and its text without markup."""

    name: str
    section: str
    text: str


@functools.cache
def manual_pages(folder: str | None = None) -> tuple[Page, ...]:
    """German manual pages, sorted by section and name.

    Raises:
        MissingDataError: the package has not been prepared.
    """
    base = raw_folder("manpages", root_of(folder)) / "usr/share/man/de"
    pages = []
    for path in sorted(base.glob("man*/*.gz")):
        if not path.is_file() or path.is_symlink():
            continue
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            text = _without_markup(file.read())
        if len(text) > 500:
            name, section, _ = path.name.rsplit(".", 2)
            pages.append(Page(name, section[0], text))
    return tuple(pages)


def _without_markup(text: str) -> str:
    kept = []
    start = re.search(r"^\.SH", text, re.MULTILINE)
    for line in text[start.start() if start else 0 :].splitlines():
        if re.match(
            r"[.'](\\\"|TH|so|if|ie|el|de|nf|fi|ad|nh|PP|P$|TP|RS|RE|ne)", line
        ):
            continue
        line = re.sub(r"^\.[A-Za-z]+ ?", "", line)
        line = re.sub(r"\\f[A-Z(]|\\,|\\/|\\&|\\\(..|\\s[+-]?\d", "", line)
        kept.append(line.replace("\\-", "-").replace("\\", "").replace('"', ""))
    return "\n".join(line for line in kept if line.strip())


def table(name: str, folder: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a file of vega-datasets, such as ``cars.json``.

    Raises:
        MissingDataError: the package has not been prepared.
    """
    base = raw_folder("vega", root_of(folder)) / "vega_datasets/_data"
    if name.endswith(".json"):
        return read_json_value(base / name)
    return list(csv.DictReader(io.StringIO(read_text(base / name))))


@functools.cache
def docstrings(packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs (first sentence, subpackage) of documented functions and classes.

    Args:
        packages: names of the packages; each of their subpackages is a class.
    """
    rows: dict[str, str | None] = {}
    for package in packages:
        for path in _python_files(package):
            parts = path.parts[path.parts.index(package) + 1 :]
            if len(parts) < 2 or parts[0].startswith("_"):
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    text = ast.get_docstring(node) or ""
                    first = " ".join(text.split("\n\n")[0].split())
                    if 20 <= len(first) <= 200:
                        label = f"{package}.{parts[0]}"
                        known = rows.setdefault(first, label)
                        if known != label:
                            rows[first] = None  # in two subpackages
    return tuple((text, label) for text, label in rows.items() if label)


# MiniLM, with the tensor names of its checkpoint


@functools.cache
def minilm_tensors(folder: str | None = None) -> dict[str, np.ndarray]:
    """Returns the tensors of the sentence encoder, with Hugging Face's names, float32.

    Raises:
        MissingDataError: the encoders have not been prepared.
    """
    path = encoder_folder("minilm", root_of(folder)) / "model.safetensors"
    if not path.is_file():
        raise MissingDataError("the encoder minilm", path, "encoders")
    return read_tensors(path)


def minilm_below(
    texts: Sequence[str], layers: int, length: int, folder: str | None = None
) -> NumpyArrays:
    """Runs the frozen lower layers of MiniLM on texts.

    Args:
        texts: B texts.
        layers: number of layers to run, of six.
        length: S, maximum number of tokens.
        folder: folder of datasets; None for the default.

    Returns:
        ``hidden`` float32 [B, S, 384] and ``mask`` int32 [B, S], 0 for padding.

    Raises:
        MissingDataError: the encoders have not been prepared.
    """
    from tokenizers import Tokenizer

    path = encoder_folder("minilm", root_of(folder))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch(list(texts))
    ids = np.asarray([row.ids for row in found], np.int32)
    mask = np.asarray([row.attention_mask for row in found], np.int32)
    tensors = minilm_tensors(folder)
    wanted = {k: v for k, v in tensors.items() if _below(k, layers)}
    run = jax.jit(functools.partial(_bert, layers=layers))
    chunks = []
    for start in range(0, len(ids), 64):
        some, real = ids[start : start + 64], mask[start : start + 64]
        fill = ((0, 64 - len(some)), (0, 0))
        out = run(wanted, np.pad(some, fill), np.pad(real, fill))
        chunks.append(np.asarray(out)[: len(some)])
    return {"hidden": np.concatenate(chunks), "mask": mask}


def _below(name: str, layers: int) -> bool:
    found = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(found[1]) < layers if found else name.startswith("embeddings.")


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)


def _bert(
    t: Mapping[str, jax.Array], ids: jax.Array, mask: jax.Array, layers: int
) -> jax.Array:
    """BERT's embeddings and first layers (Devlin et al. 2019, arXiv:1810.04805)."""

    def dense(x: jax.Array, name: str) -> jax.Array:
        bias = t[f"{name}.bias"].reshape(1, 1, -1)
        return jnp.einsum("bsi,oi->bso", x, t[f"{name}.weight"]) + bias

    def norm(x: jax.Array, name: str) -> jax.Array:
        return _norm(x, t[f"{name}.weight"], t[f"{name}.bias"])

    b, s = ids.shape
    e = "embeddings"
    x = t[f"{e}.word_embeddings.weight"][ids]
    x = x + t[f"{e}.position_embeddings.weight"][None, :s]
    x = x + t[f"{e}.token_type_embeddings.weight"][0].reshape(1, 1, -1)
    x = norm(x, f"{e}.LayerNorm")
    keep = (mask > 0)[:, None, None, :]
    for i in range(layers):
        at = f"encoder.layer.{i}"
        q, k, v = (
            dense(x, f"{at}.attention.self.{n}").reshape(b, s, 12, 32)
            for n in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 32**0.5
        p = jax.nn.softmax(jnp.where(keep, scores, -1e9), -1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", p, v).reshape(b, s, 384)
        a = dense(mixed, f"{at}.attention.output.dense")
        x = norm(x + a, f"{at}.attention.output.LayerNorm")
        h = jax.nn.gelu(dense(x, f"{at}.intermediate.dense"), approximate=False)
        h = dense(h, f"{at}.output.dense")
        x = norm(x + h, f"{at}.output.LayerNorm")
    return x
