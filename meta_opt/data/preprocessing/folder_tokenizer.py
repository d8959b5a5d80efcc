"""The tokenizer of a Hugging Face folder, as CLIP and SigLIP read their captions."""

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
    """Texts to rows of token ids by a folder's ``tokenizer.json``.

    The special tokens are those that the file adds; they stay where a long text is cut.
    What of the reference is code and not in that file, ``tokenizer_config.json`` says:
    lower-casing, and for SigLIP that ASCII punctuation is dropped and white space
    joined.

    Args:
        folder: with ``tokenizer.json`` and, if there is one, ``tokenizer_config.json``.
        pad_id: of the padding where ``tokenizer_config.json`` names no token.

    Attributes:
        vocab_size: one more than the largest id.
        pad_id: of the padding.
        special_ids: ids that the tokenizer puts around a text, in their order.
        mask_id: of the token that stands for a masked one; None if there is none.

    Raises:
        ValueError: a folder without ``tokenizer.json``, or files that are damaged.

    Example:
        rows = FolderTokenizer("siglip-so400m-patch14-384", 1).encode(["a cat"], 64)
    """

    def __init__(self, folder: str | os.PathLike, pad_id: int) -> None:
        folder = Path(folder)
        if not (folder / _TOKENIZER).is_file():
            raise ValueError(_absent(folder))
        self._tokenizer = read_tokenizer(folder / _TOKENIZER)
        # Done here, so that one tokenizer serves threads and lengths.
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
            length: S, the tokens of a row, the special ones counted.

        Returns:
            int32 [B, S], padded with ``pad_id``.

        Raises:
            ValueError: if ``length`` has no room for a token beside the special ones.
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
        """The ids of texts, without the special tokens around them."""
        cleaned = [self._clean(text) for text in texts]
        found = self._tokenizer.encode_batch(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """The texts of rows of ids [B, S], special tokens left out."""
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
    """How to come by the file, of what Transformers can convert."""
    code = ""
    if (folder / "spiece.model").is_file():
        # SigLIP's own class has no fast form; T5's reads the same vocabulary.
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
