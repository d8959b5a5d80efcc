"""A fine-tuning of seconds as one of the processes that share it.

    python tests/hosts_toy.py --config configs/finetune.py:smoke --workdir WORKDIR \
        --processes 2 --process 0 --coordinator localhost:1234

It is ``experiments/finetune.py`` with a model of two narrow layers, at the size ``toy``,
and sends itself a signal while step ``--at`` runs, if it is told to.
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

from experiments import finetune
from meta_opt.finetuning import vision_text
from meta_opt.models.vision_text import SIZES, TowerConfig, VisionTextConfig

_SIGNAL = flags.DEFINE_string("signal", "", "name of a signal to itself")
_AT = flags.DEFINE_integer("at", 0, "step that it comes in")

TOWER = TowerConfig(width=16, depth=2, heads=2, mlp_width=32)
SIZES["toy"] = VisionTextConfig(
    patch_size=16, vision=TOWER, text=TOWER, embed_dim=16, scan_layers=True
)


class Signalling:
    """Batches; the signal comes when the step before ``at`` is on its way."""

    def __init__(self, batches):
        self._batches, self._taken = batches, 0

    def __next__(self):
        self._taken += 1
        if self._taken == _AT.value:
            os.kill(os.getpid(), getattr(signal, _SIGNAL.value))
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def main(argv):
    # So small a model would not be divided.
    vision_text.VISION_TEXT_RULES = tuple(
        dataclasses.replace(rule, min_size=0) for rule in vision_text.VISION_TEXT_RULES
    )
    make_iterator = vision_text.make_iterator
    vision_text.make_iterator = lambda *args: Signalling(make_iterator(*args))
    finetune.main(argv)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
