"""Where each baseline's settings are looked for on small tasks."""

from meta_opt.tuning.space import Setting

_RATES = {
    "sgd": (1e-3, 3.0),
    "adam": (1e-4, 1e-1),
    "adamw": (1e-4, 1e-1),
    "rmsprop": (3e-5, 3e-2),
    "lion": (1e-5, 1e-2),
    "muon": (1e-4, 3e-1),
    "schedule_free_adamw": (3e-4, 3e-1),
    "prodigy": (1e-1, 1e1),
}
"""Decades around each default: the best rate of every task met so far lies inside."""

_DECAYS = {
    # Added to the gradient: not multiplied by what divides it.
    "sgd": (1e-6, 1e-2),
    "adam": (1e-6, 1e-2),
    "rmsprop": (1e-6, 1e-2),
    # Lion's rate is several times smaller, and its decay larger by as much.
    "lion": (1e-3, 1e1),
}
_DECOUPLED = (1e-4, 1.0)


def baseline_space(name: str) -> dict[str, Setting]:
    """The search space of a baseline.

    Args:
        name: name of the baseline.

    Returns:
        Ranges of learning rate and weight decay (log-uniform), choices of momentum and
        warm-up.

    Raises:
        ValueError: there is no such baseline.
    """
    if name not in _RATES:
        known = ", ".join(_RATES)
        raise ValueError(f"no search space for {name!r}; available: {known}")
    low, high = _RATES[name]
    least, most = _DECAYS.get(name, _DECOUPLED)
    return {
        "learning_rate": Setting("log", low=low, high=high),
        "weight_decay": Setting("log", low=least, high=most),
        "momentum": Setting("choice", choices=(0.8, 0.9, 0.95, 0.98)),
        "warmup_fraction": Setting("choice", choices=(0.02, 0.05, 0.1, 0.2)),
    }
