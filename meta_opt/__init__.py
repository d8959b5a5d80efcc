"""meta_opt: optimizers that need no tuning, for fine-tuning multimodal models.

>>> import meta_opt
>>> tx = meta_opt.learned_optimizer(num_steps=1000)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meta_opt.inference import load_exported as load_exported
    from meta_opt.optimizers.controller import ControllerConfig as ControllerConfig
    from meta_opt.optimizers.controller import init_theta as init_theta
    from meta_opt.optimizers.hand_designed import hand_designed as hand_designed
    from meta_opt.optimizers.learned import learned_optimizer as learned_optimizer
    from meta_opt.optimizers.registry import OptimizerConfig as OptimizerConfig
    from meta_opt.optimizers.registry import make_optimizer as make_optimizer
    from meta_opt.optimizers.sharding import state_shardings as state_shardings
    from meta_opt.optimizers.weights import load_theta as load_theta

__version__ = "0.1.0"

# Loaded on first use: importing meta_opt costs no more than importing optax.
_HOME = {
    "ControllerConfig": "meta_opt.optimizers.controller",
    "init_theta": "meta_opt.optimizers.controller",
    "hand_designed": "meta_opt.optimizers.hand_designed",
    "learned_optimizer": "meta_opt.optimizers.learned",
    "OptimizerConfig": "meta_opt.optimizers.registry",
    "make_optimizer": "meta_opt.optimizers.registry",
    "state_shardings": "meta_opt.optimizers.sharding",
    "load_theta": "meta_opt.optimizers.weights",
    "load_exported": "meta_opt.inference",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'meta_opt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
