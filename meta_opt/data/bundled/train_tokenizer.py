"""Trains the bundled caption vocabulary: see ``--help``.

``make data`` and then ``python -m meta_opt.data.bundled.train_tokenizer``.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from meta_opt.data import data_dir
from meta_opt.data.bundled import BUNDLED
from meta_opt.data.preprocessing.tokenizer import train
from meta_opt.data.sources.tfds_sources import read_records, tfds_source
from meta_opt.types import write_atomic


def training_texts(root: Path) -> Iterator[str]:
    """Yields captions of Open Clip Art, names and tags of emoji; train splits only."""
    for texts in tfds_source("openclipart", "train", root).captions:
        yield from texts
    seen = set()
    for row in read_records("emoji", "train", root):
        # Skip duplicates: an emoji has a row for each artist.
        if row["codepoint"] not in seen:
            seen.add(row["codepoint"])
            yield from (row["name"], row["unicode_name"], *row["tags"])


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and writes the vocabulary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default=None, help="prepared datasets")
    parser.add_argument("--out", type=Path, default=BUNDLED / "tokenizer.json")
    parser.add_argument("--vocab_size", type=int, default=2048)
    arguments = parser.parse_args(argv)
    # Sorted, so that the result does not depend on the order of TFDS records.
    texts = sorted(training_texts(arguments.data_dir or data_dir()))
    tokenizer = train(texts, arguments.vocab_size)
    with write_atomic(arguments.out) as path:
        path.write_text(tokenizer.to_str() + "\n", "utf-8")
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} tokens, {len(texts)} texts")


if __name__ == "__main__":
    main()
