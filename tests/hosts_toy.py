"""A fine-tuning of seconds as one of the processes that share it.

    python tests/hosts_toy.py --config configs/finetune.py:smoke --workdir WORKDIR \
        --processes 2 --process 0 --coordinator localhost:1234

It is ``experiments/finetune.py`` with a model of narrow towers of one layer. It writes
the state that its process ends with to ``WORKDIR/final-PROCESS.npz``, and it sends
itself a signal while step ``--at`` runs, if it is told to.
"""

import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import flags

from experiments import cli, finetune
from meta_opt.finetuning import run as run_module
from meta_opt.models.vision_text import SIZES, TowerConfig, VisionTextConfig
from meta_opt.parallel.placement import to_host
from meta_opt.workloads import image_text_model

_SIGNAL = flags.DEFINE_string("signal", "", "name of a signal to itself")
_AT = flags.DEFINE_integer("at", 0, "step that it comes in")

TOWER = TowerConfig(width=16, depth=1, heads=2, mlp_width=32)
TOY = VisionTextConfig(patch_size=16, vision=TOWER, text=TOWER, embed_dim=16)


class Signalling:
    """Batches; the signal comes when the step before ``--at`` is on its way."""

    def __init__(self, batches):
        self._batches, self._taken = batches, 0

    def __next__(self):
        self._taken += 1
        if self._taken == _AT.value:
            os.kill(os.getpid(), getattr(signal, _SIGNAL.value))
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def run_and_keep(workload, tx, config, *, workdir, **kwargs):
    def train_batches(*args):
        return Signalling(workload.train_batches(*args))

    signalled = dataclasses.replace(workload, train_batches=train_batches)
    result = run(signalled, tx, config, workdir=workdir, **kwargs)
    state = to_host((result.state.params, result.state.opt_state))
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    path = Path(workdir) / f"final-{jax.process_index()}.npz"
    np.savez(path, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
    return result


if __name__ == "__main__":
    SIZES["toy"] = TOY
    # So small a model would not be divided.
    rules = image_text_model.CONTRASTIVE.rules
    image_text_model.CONTRASTIVE = image_text_model.CONTRASTIVE._replace(
        rules=tuple(dataclasses.replace(rule, min_size=0) for rule in rules)
    )
    run, run_module.run = run_module.run, run_and_keep
    cli.run(finetune.main, log_level=logging.INFO, processes=True)
