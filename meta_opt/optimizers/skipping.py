"""Skipped steps: no update, and unchanged momenta and second moments."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.optimizers.grouping import Group
from meta_opt.optimizers.update_rule import GroupArrays, GroupResult


def apply_or_skip(
    ok: jax.Array,
    groups: Sequence[Group],
    moved: Sequence[GroupResult],
    arrays: Sequence[GroupArrays],
) -> list[GroupResult]:
    """Returns ``moved`` if the step is ok, else no update and the old statistics.

    A select for large leaves' updates, fused into their arithmetic (their momenta have
    it already). Stacked leaves, which are sliced afterwards, go through a branch: the
    many slices would otherwise be fused with the arithmetic of the whole stack, which
    makes compilation many times slower.

    Args:
        ok: bool [], whether the step is taken.
        groups: the groups.
        moved: results of `apply_rule` for the groups.
        arrays: arrays of the groups before the step.
    """
    skipped = [
        GroupResult([jnp.zeros_like(u) for u in t.updates], a.momentum, a.second)
        for t, a in zip(moved, arrays, strict=True)
    ]

    def branched(results: Sequence[GroupResult]) -> list:
        return [
            (
                [x for x, c in zip(r.updates, g.chunks, strict=True) if len(c) > 1],
                [x for x, c in zip(r.momentum, g.chunks, strict=True) if len(c) > 1],
                r.second,
            )
            for g, r in zip(groups, results, strict=True)
        ]

    kept = jax.lax.cond(
        ok,
        lambda new, old: new,
        lambda new, old: old,
        branched(moved),
        branched(skipped),
    )
    outputs = []
    for group, new, old, (updates, momenta, second) in zip(
        groups, moved, skipped, kept, strict=True
    ):
        updates, momenta = iter(updates), iter(momenta)
        stacked = [len(chunk) > 1 for chunk in group.chunks]
        outputs.append(
            GroupResult(
                [
                    next(updates) if several else jnp.where(ok, x, y)
                    for several, x, y in zip(
                        stacked, new.updates, old.updates, strict=True
                    )
                ],
                [
                    next(momenta) if several else x
                    for several, x in zip(stacked, new.momentum, strict=True)
                ],
                second,
            )
        )
    return outputs
