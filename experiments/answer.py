"""Lets a generative model write about pictures.

    python -m experiments.answer --model runs/mine/tuned --prompt "caption en" *.jpg

A line for each picture: its path, a tab, the answer.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

# Wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODEL = flags.DEFINE_string(
    "model", None, "PaliGemma folder, or path of weights that finetune exported."
)
PROCESSOR = flags.DEFINE_string("processor", "", "Folder of the tokenizer, if another.")
ADAPTERS = flags.DEFINE_string("adapters", "", "Folder of adapters on it, if any.")
PROMPT = flags.DEFINE_string("prompt", "caption en", "What it is asked.")
LENGTH = flags.DEFINE_integer("length", 32, "Tokens of an answer at most.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Pictures at a time.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "In which it computes.")


def main(argv: Sequence[str]) -> None:
    """Reads, asks, prints."""
    # Here, so that --help does not wait for JAX.
    import numpy as np

    from meta_opt.data.answers import AnswerTokenizer
    from meta_opt.data.images import decode
    from meta_opt.data.pictures import MAX_PIXELS
    from meta_opt.evaluation.answers import write_answers
    from meta_opt.finetuning.model_source import (
        ModelConfig,
        load_weights,
        read_preprocessing,
    )
    from meta_opt.models.adapters import load_adapters
    from meta_opt.models.decoding import DecodingConfig

    if len(argv) < 2:
        raise app.UsageError("name at least one picture")
    try:
        config = ModelConfig(
            weights=MODEL.value,
            processor=PROCESSOR.value,
            loss="captioning",
            dtype=DTYPE.value,
        )
        reading = read_preprocessing(config, LENGTH.value, prompt=PROMPT.value)
        model = load_weights(config, reading)
        if ADAPTERS.value:
            load_adapters(ADAPTERS.value, model)
    except (ValueError, OSError) as error:
        sys.exit(f"answer: {error}")
    images = []
    for path in argv[1:]:
        try:
            images.append(reading.fit(decode(Path(path).read_bytes(), MAX_PIXELS)))
        except (ValueError, OSError) as error:
            sys.exit(f"answer: {path} cannot be read as a picture: {error}")
    assert isinstance(reading.tokenizer, AnswerTokenizer)
    data = {
        "image": np.stack(images),
        "prompt": reading.tokenizer.encode_prompts([""] * len(images)),
    }
    settings = DecodingConfig(max_tokens=LENGTH.value)
    written = write_answers(model, data, reading.tokenizer, settings, BATCH.value)
    for path, answer in zip(argv[1:], written, strict=True):
        print(f"{path}\t{answer}")


if __name__ == "__main__":
    flags.mark_flag_as_required("model")
    app.run(main)
