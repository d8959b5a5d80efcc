"""Pretrains a vision-text model from scratch and writes its weights.

    python experiments/pretrain.py --config configs/pretrain.py:nano_emoji \
        --workdir runs/pretrain --config.export.path=runs/pretrain/nano

``make data`` prepares the data. This is ``finetune.py`` with another default
configuration; loss, loop and report are the same.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli, finetune

if __name__ == "__main__":
    cli.run(finetune.main, log_level=logging.INFO, processes=True)
