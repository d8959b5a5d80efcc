"""The training state of a fine-tuning run, as one pytree."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from meta_opt.optimizers.sharding import state_shardings
from meta_opt.parallel.mesh import replicated
from meta_opt.parallel.placement import place
from meta_opt.parallel.sharding import FSDP_RULES, Rule, parameter_shardings
from meta_opt.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a training step reads and writes.

    Attributes:
        step: int32 [], number of updates.
        params: pytree of arrays, the trainable part; the optimizer sees only these.
        frozen: pytree of arrays that are not trained; empty in full fine-tuning.
        opt_state: state of the optimizer.
        rng: typed PRNG key [], constant; each step folds its number in.
        nonfinite: int32 [], number of steps with a loss that was not finite.
        scale: float32 [], factor that scales the optimizer's updates; 1 unless the
            run's feedback has shrunk it (`meta_opt.finetuning.recovery`).
        objective: state of the combination of losses
            (`meta_opt.finetuning.objective`); empty with a single loss.
    """

    step: jax.Array
    params: PyTree
    frozen: PyTree
    opt_state: PyTree
    rng: jax.Array
    nonfinite: jax.Array
    scale: jax.Array
    objective: PyTree = ()

    def saved(self) -> dict[str, PyTree]:
        """Returns the content of a checkpoint: everything but ``frozen``."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["frozen"]
        return fields


def init_state(
    params: PyTree,
    frozen: PyTree,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: Sequence[Rule] = FSDP_RULES,
    seed: int = 0,
    *,
    donate: bool = False,
    init_objective: Callable[[jax.Array], PyTree] = lambda key: (),
) -> TrainState:
    """Creates the state of step 0, sharded over the mesh.

    The optimizer's state is sharded like its parameters.

    Args:
        params: pytree of arrays, the trainable part.
        frozen: pytree of arrays that are not trained.
        tx: the optimizer.
        mesh: mesh from :func:`meta_opt.parallel.mesh.make_mesh`.
        rules: sharding rules of ``params`` and ``frozen``.
        seed: random seed of the steps.
        donate: whether ``params`` and ``frozen`` may be donated. Arrays with the
            right sharding are then not copied, and are deleted once the state is
            donated.
        init_objective: creates the objective's state from a key.

    Returns:
        A state that is safe to donate.

    Raises:
        ValueError: a rule matches nothing.
    """
    shardings = parameter_shardings(rules, mesh, params, frozen)
    # Copies unless the caller donates the arrays, because steps donate their state.
    params, frozen = place((params, frozen), shardings, donate)
    init = jax.jit(tx.init, out_shardings=state_shardings(tx, params))
    step, nonfinite, rng, scale = place(
        (jnp.int32(0), jnp.int32(0), jax.random.key(seed), jnp.float32(1)),
        replicated(mesh),
    )
    objective_key = jax.random.fold_in(jax.random.key(seed), 1)
    objective = place(init_objective(objective_key), replicated(mesh))
    return TrainState(
        *(step, params, frozen, init(params), rng, nonfinite, scale, objective)
    )


def fingerprint(tree: PyTree) -> int:
    """Hashes the contents of arrays independently of devices and sharding.

    Each element's bits are mixed with its position and summed modulo 2**32. The sum
    does not depend on the order of summation, hence not on the sharding. It
    distinguishes models but is not a cryptographic hash.

    Args:
        tree: pytree of arrays.

    Returns:
        An integer in [0, 2**32).
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    return int(jax.device_get(_fingerprint(leaves))) if leaves else 0


@jax.jit
def _fingerprint(leaves: list[jax.Array]) -> jax.Array:
    total = jnp.uint32(0)
    for number, leaf in enumerate(leaves, start=1):
        words = _words(leaf)
        position = jnp.zeros(words.shape, jnp.uint32)
        for axis, stride in enumerate(_strides(words.shape)):
            index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            position += index * jnp.uint32(stride)
        mixed = (words ^ (position * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
        total = total * jnp.uint32(31) + jnp.sum(mixed ^ (mixed >> 13))
        for size in (number, *leaf.shape):
            total = total * jnp.uint32(31) + jnp.uint32(size)
    return total


def _words(leaf: jax.Array) -> jax.Array:
    """Returns the bits of the elements as uint32, without reshaping (which gathers)."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    bits = jax.lax.bitcast_convert_type(leaf, unsigned[leaf.dtype.itemsize])
    return bits.astype(jnp.uint32)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Returns row-major strides, modulo 2**32."""
    return [
        int(np.prod(shape[axis + 1 :], dtype=object)) % 2**32
        for axis in range(len(shape))
    ]
