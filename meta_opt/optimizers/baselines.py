"""Hand-designed baselines from optax, all with warm-up and cosine decay.

SGD, Adam, AdamW, RMSProp and Lion: the optimizers that the learned one is compared
with. Their defaults are the ones people start from.
"""

import optax

DEFAULT_LEARNING_RATE = {
    "sgd": 1e-2,
    "adam": 1e-3,
    "adamw": 1e-3,
    "rmsprop": 1e-3,
    "lion": 1e-4,
}


def baseline(
    name: str,
    num_steps: int,
    *,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    warmup_fraction: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
    """One of the five baselines.

    Args:
        name: ``sgd``, ``adam``, ``adamw``, ``rmsprop`` or ``lion``.
        num_steps: length of the cosine schedule.
        learning_rate: peak; None for the usual default.
        weight_decay: decoupled for adamw and lion, added to the gradient for the
            others.
        momentum: momentum of SGD and RMSProp, first decay rate of the others.
        warmup_fraction: share of the run with linear warm-up.

    Returns:
        The transformation; extra keywords such as ``value`` are ignored.

    Raises:
        ValueError: an unknown name or ``num_steps`` below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    if name not in DEFAULT_LEARNING_RATE:
        raise ValueError(
            f"no baseline {name!r}; there are {', '.join(DEFAULT_LEARNING_RATE)}"
        )
    peak = DEFAULT_LEARNING_RATE[name] if learning_rate is None else learning_rate
    warmup = max(1, round(warmup_fraction * num_steps))
    cosine = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1))
    schedule = optax.join_schedules(
        [lambda t: peak * (t + 1.0) / warmup, cosine], [warmup]
    )
    if name == "adamw":
        tx = optax.adamw(schedule, b1=momentum, weight_decay=weight_decay)
    elif name == "lion":
        tx = optax.lion(schedule, b1=momentum, weight_decay=weight_decay)
    else:
        rule = {
            "sgd": lambda: optax.sgd(schedule, momentum=momentum),
            "adam": lambda: optax.adam(schedule, b1=momentum),
            "rmsprop": lambda: optax.rmsprop(schedule, momentum=momentum),
        }[name]()
        tx = optax.chain(optax.add_decayed_weights(weight_decay), rule)
    return optax.with_extra_args_support(tx)
