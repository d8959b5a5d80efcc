"""meta_opt: optimizers that need no tuning, for fine-tuning multimodal models.

>>> import meta_opt
>>> tx = meta_opt.learned_optimizer(num_steps=1000)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meta_opt.inference import load_exported
    from meta_opt.optimizers.controller import ControllerConfig, init_theta
    from meta_opt.optimizers.diagnostics import diagnostics
    from meta_opt.optimizers.hand_designed import hand_designed
    from meta_opt.optimizers.learned import learned_optimizer
    from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
    from meta_opt.optimizers.sharding import state_shardings
    from meta_opt.optimizers.weights import load_theta
    from meta_opt.predictor.fit import fit
    from meta_opt.predictor.outline import plan
    from meta_opt.predictor.predictor import Predictor
    from meta_opt.reporting.diagnostics import plot_diagnostics

__version__ = "0.1.0"

__all__ = [
    "ControllerConfig",
    "OptimizerConfig",
    "Predictor",
    "diagnostics",
    "fit",
    "hand_designed",
    "init_theta",
    "learned_optimizer",
    "load_exported",
    "load_theta",
    "make_optimizer",
    "plan",
    "plot_diagnostics",
    "state_shardings",
]

# Loaded on first use: importing meta_opt costs no more than importing optax.
_MODULES = {
    "ControllerConfig": "optimizers.controller",
    "OptimizerConfig": "optimizers.registry",
    "Predictor": "predictor.predictor",
    "diagnostics": "optimizers.diagnostics",
    "fit": "predictor.fit",
    "hand_designed": "optimizers.hand_designed",
    "init_theta": "optimizers.controller",
    "learned_optimizer": "optimizers.learned",
    "load_exported": "inference",
    "load_theta": "optimizers.weights",
    "make_optimizer": "optimizers.registry",
    "plan": "predictor.outline",
    "plot_diagnostics": "reporting.diagnostics",
    "state_shardings": "optimizers.sharding",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'meta_opt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"meta_opt.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
