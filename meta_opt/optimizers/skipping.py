"""What a skipped step leaves: no update, and the statistics as they were."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.optimizers.grouping import Group
from meta_opt.optimizers.update_rule import GroupArrays, GroupResult


def unless_skipped(
    ok: jax.Array,
    groups: Sequence[Group],
    taken: Sequence[GroupResult],
    arrays: Sequence[GroupArrays],
) -> list[GroupResult]:
    """``taken`` where the step is ok, else no update and the old statistics.

    A select for large leaves, fused into their arithmetic. What is cut up afterwards
    goes through a branch instead: the many slices that follow would else be fused with
    the arithmetic of the whole stack, which makes compilation many times slower.
    """
    skipped = [
        GroupResult([jnp.zeros_like(u) for u in t.updates], a.momentum, a.second)
        for t, a in zip(taken, arrays, strict=True)
    ]

    def stacked(results: Sequence[GroupResult]) -> list:
        return [
            (
                [x for x, c in zip(r.updates, g.chunks, strict=True) if len(c) > 1],
                [x for x, c in zip(r.momentum, g.chunks, strict=True) if len(c) > 1],
                r.second,
            )
            for g, r in zip(groups, results, strict=True)
        ]

    branched = jax.lax.cond(
        ok, lambda new, old: new, lambda new, old: old, stacked(taken), stacked(skipped)
    )
    outputs = []
    for group, new, old, (updates, momenta, second) in zip(
        groups, taken, skipped, branched, strict=True
    ):
        rest = [iter(updates), iter(momenta)]
        chosen: list[list[jax.Array]] = [[], []]
        for j, chunk in enumerate(group.chunks):
            for k, (x, y) in enumerate(
                ((new.updates, old.updates), (new.momentum, old.momentum))
            ):
                one = next(rest[k]) if len(chunk) > 1 else jnp.where(ok, x[j], y[j])
                chosen[k].append(one)
        outputs.append(GroupResult(chosen[0], chosen[1], second))
    return outputs
