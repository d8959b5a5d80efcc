"""Pre-trains a vision-text model from scratch and writes its weights.

    python experiments/pretrain.py --config configs/pretrain.py:nano_emoji \
        --workdir runs/pretrain --config.export.path=runs/pretrain/nano

The data are prepared by ``make data``. It is the program of ``finetune.py`` under
another configuration: the loss, the loop and the report are the same.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli, finetune

if __name__ == "__main__":
    cli.run(finetune.main, log_level=logging.INFO, processes=True)
