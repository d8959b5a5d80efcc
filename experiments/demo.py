"""Fine-tunes nano with four optimizers; prints a table and writes a report.

    python -m experiments.demo

Run again, it resumes what was interrupted and reuses what is finished, as long as
settings, weights, code and machine are the same; ``--fresh`` starts over.
"""

import dataclasses
import functools
import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# For configs.common, wherever this is started from.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONFIG = config_flags.DEFINE_config_file("config", str(ROOT / "configs/demo.py"))
WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder for the runs.")
REPORT = flags.DEFINE_string("report", "report", "Folder for the report.")
FRESH = flags.DEFINE_bool("fresh", False, "Whether to discard finished runs.")
