"""Generates text about images with a generative model.

    python -m experiments.answer --model runs/mine/tuned --prompt "caption en" *.jpg

Prints a line for each image: its path, a tab and the answer.
"""

import sys
from pathlib import Path

from absl import flags

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

MODEL = flags.DEFINE_string(
    "model", None, "PaliGemma folder, or path of weights that finetune exported."
)
PROCESSOR = flags.DEFINE_string(
    "processor", "", "Folder of the tokenizer, if not that of the model."
)
ADAPTERS = flags.DEFINE_string("adapters", "", "Folder of adapters for the model.")
PROMPT = flags.DEFINE_string("prompt", "caption en", "Prompt for every image.")
LENGTH = flags.DEFINE_integer("length", 32, "Maximum tokens per answer.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Batch size.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Compute dtype.")


def main(*pictures: str) -> None:
    """Loads the model and prints its answer about each image."""
    # Imported late so that --help does not wait for JAX.
    from meta_opt.inference import GenerativeModel, load_exported

    if not pictures:
        raise ValueError("name at least one image")
    model = load_exported(
        MODEL.value,
        adapter=ADAPTERS.value,
        processor=PROCESSOR.value,
        batch_size=BATCH.value,
        dtype=DTYPE.value,
        max_tokens=LENGTH.value,
    )
    if not isinstance(model, GenerativeModel):
        raise ValueError(
            f"--model={MODEL.value} is not a generative model; give one that is"
        )
    answers = model.answer(pictures, PROMPT.value)
    for path, answer in zip(pictures, answers, strict=True):
        print(f"{path}\t{answer}")


if __name__ == "__main__":
    flags.mark_flag_as_required("model")
    cli.run(main, arguments=True)
