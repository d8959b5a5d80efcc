"""Baselines with gradient clipping and learning rates per parameter group."""

import re
from collections.abc import Sequence

import jax
import optax

from meta_opt.error_messages import first_few
from meta_opt.tree_paths import path_name
from meta_opt.types import PyTree

AVERAGING = ("schedule_free_adamw", "prodigy")
"""Baselines whose updates are not proportional to the learning rate."""


def with_group_rates(
    tx: optax.GradientTransformationExtraArgs,
    name: str,
    clip_norm: float = 0.0,
    rate_factors: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformationExtraArgs:
    """Adds gradient-norm clipping and per-group scaling of updates to a baseline.

    The updates of a baseline, including decoupled weight decay, are proportional to its
    learning rate, so that scaling them is equivalent to another learning rate.

    Args:
        tx: the baseline.
        name: name of the baseline.
        clip_norm: global norm to which gradients are clipped; 0 for no clipping.
        rate_factors: (regular expression, factor) pairs; the first that finds a
            parameter's '/'-joined path gives its factor, others have 1.

    Returns:
        The transformation; ``tx`` itself if there is nothing to do.

    Raises:
        ValueError: a negative norm or factor, factors of a baseline whose updates are
            not proportional to its learning rate; from ``init``, an expression that
            finds no parameter.
    """
    if not clip_norm >= 0:
        raise ValueError(f"clip_norm={clip_norm} must be at least 0; 0 clips nothing")
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(tx)
    if rate_factors:
        if name in AVERAGING:
            raise ValueError(
                f"rate_factors={tuple(rate_factors)}: updates of {name!r} are not "
                "proportional to the learning rate; leave them out"
            )
        if wrong := [pair for pair in rate_factors if not pair[1] > 0]:
            raise ValueError(f"rate_factors={wrong} must be above 0")
        parts.append(_scale_groups(rate_factors))
    if len(parts) == 1:
        return tx
    return optax.with_extra_args_support(optax.chain(*parts))


def _scale_groups(
    rate_factors: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
    patterns = [(re.compile(pattern), factor) for pattern, factor in rate_factors]

    def init(params: PyTree) -> optax.EmptyState:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        names = [path_name(path) for path, _ in leaves]
        for pattern, _ in patterns:
            if not any(map(pattern.search, names)):
                raise ValueError(
                    f"rate_factors: {pattern.pattern!r} finds none of the parameters "
                    f"({first_few(names)})"
                )
        return optax.EmptyState()

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        name = path_name(path)
        for pattern, factor in patterns:
            if pattern.search(name):
                return update * factor
        return update

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree = None
    ) -> tuple[PyTree, optax.EmptyState]:
        del params
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
