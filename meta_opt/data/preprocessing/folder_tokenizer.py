"""The tokenizer of a Hugging Face folder, as CLIP and SigLIP use it for captions."""

import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import decoders

from meta_opt.data.preprocessing.tokenizer import check_texts, read_tokenizer
from meta_opt.data.preprocessing.wordpiece import joined
from meta_opt.text_files import read_json

_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class FolderTokenizer:
    """Encodes texts as rows of token ids with a folder's ``tokenizer.json``.

    The special tokens are those that the file adds; truncated texts keep them.
    Preprocessing that Transformers implements in code follows
    ``tokenizer_config.json``: lower-casing, and for SigLIP removal of ASCII punctuation
    and of repeated white space.

    Args:
        folder: the folder with ``tokenizer.json`` and optionally
            ``tokenizer_config.json``.
        pad_id: id of the padding token if ``tokenizer_config.json`` names none.

    Attributes:
        vocab_size: one more than the largest id.
        pad_id: id of the padding token.
        special_ids: ids of the special tokens around a text, in their order.
        mask_id: id of the mask token; None if there is none.

    Raises:
        ValueError: a folder without ``tokenizer.json``, or damaged files.

    Example:
        rows = FolderTokenizer("siglip-so400m-patch14-384", 1).encode(["a cat"], 64)
    """

    def __init__(self, folder: str | os.PathLike, pad_id: int) -> None:
        folder = Path(folder)
        if not (folder / _TOKENIZER).is_file():
            raise ValueError(_absent(folder))
        self._tokenizer = read_tokenizer(folder / _TOKENIZER)
        # Padding and truncation are done here, so that one tokenizer can be shared by
        # threads and lengths.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        about = folder / _SETTINGS
        settings = read_json(about) if about.is_file() else {}
        siglip = str(settings.get("tokenizer_class", "")).startswith("SiglipTokenizer")
        self._lower = bool(settings.get("do_lower_case", siglip))
        self._plain = siglip
        self._wordpiece = isinstance(self._tokenizer.decoder, decoders.WordPiece)
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        try:
            pad = self._id(settings, "pad_token")
            self.mask_id = self._id(settings, "mask_token", "[MASK]")
        except ValueError as error:
            raise ValueError(f"{about} is damaged: {error}") from None
        self.pad_id = pad_id if pad is None else pad
        self.special_ids: tuple[int, ...] = tuple(self._tokenizer.encode("").ids)

    def _id(
        self, settings: Mapping[str, Any], name: str, default: str | None = None
    ) -> int | None:
        token = settings.get(name, default)
        token = token.get("content") if isinstance(token, Mapping) else token
        if token is not None and not isinstance(token, str):
            raise ValueError(f"{name}={settings[name]!r} must be a string")
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Encodes texts.

        Args:
            texts: B texts.
            length: S, number of tokens of a row, including special tokens.

        Returns:
            int32 [B, S], padded with ``pad_id``.

        Raises:
            ValueError: if ``length`` leaves no room for a token beside the special
                ones.
            TypeError: if ``texts`` is one string.
        """
        check_texts(texts, length, least=len(self.special_ids) + 1)
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        encodings = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        for row, encoding in zip(rows, encodings, strict=True):
            special = np.asarray(encoding.special_tokens_mask, bool)
            room = length - special.sum()
            ids = np.asarray(encoding.ids)[special | (np.cumsum(~special) <= room)]
            row[: len(ids)] = ids
        return rows

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""
        cleaned = [self._clean(text) for text in texts]
        found = self._tokenizer.encode_batch(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """Decodes rows of ids [B, S], without special tokens."""
        rows = ids if isinstance(ids, list) else np.atleast_2d(ids).tolist()
        texts = [text.strip() for text in self._tokenizer.decode_batch(rows)]
        return [joined(text) for text in texts] if self._wordpiece else texts

    def _clean(self, text: str) -> str:
        if self._lower:
            text = text.lower()
        if self._plain:
            text = re.sub(r"\s+", " ", text.translate(_NO_PUNCTUATION)).strip()
        return text


def _absent(folder: Path) -> str:
    """Error message with the command that makes the file with Transformers."""
    code = ""
    if (folder / "spiece.model").is_file():
        # SigLIP has no fast tokenizer; T5's reads the same vocabulary.
        code = (
            "from transformers import T5TokenizerFast as T; "
            f"T.from_pretrained({str(folder)!r}, extra_ids=0)"
        )
    elif any((folder / name).is_file() for name in ("vocab.json", "tokenizer.model")):
        code = (
            "from transformers import AutoTokenizer as T; "
            f"T.from_pretrained({str(folder)!r})"
        )
    how = f"fetch it too, from the model that {folder.name} was made of"
    if code:
        code += f".backend_tokenizer.save({str(folder / _TOKENIZER)!r})"
        how += (
            f', or run: python -c "{code}" (it needs the packages transformers, '
            "sentencepiece and protobuf)"
        )
    return (
        f"{folder} has no {_TOKENIZER}: {how}; or name another folder that has it in "
        "model.processor"
    )
