"""Losses that should fall by decades: a function fit and a Poisson equation.

    python -m experiments.function_fits --num_steps 400 --seed 0 --seed 1

Tanh networks of two hidden layers of 32, on 64 fixed points, without noise or
mini-batches: ``fit`` to sin(pi x) on [-1, 1] by mean squared error, and ``poisson``,
u'' = -pi^2 sin(pi x) with u(-1) = u(1) = 0 as a physics-informed network (Raissi et al.
2019, doi:10.1016/j.jcp.2018.10.045). Prints the final losses of the learned optimizer,
of the same without some of its controller's direct weights, of the hand-designed rule,
and of Adam at several constant learning rates.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

if TYPE_CHECKING:
    import jax
    import optax

    Params = list[dict[str, jax.Array]]

NUM_STEPS = flags.DEFINE_integer("num_steps", 400, "Steps of a run.", lower_bound=1)
SEED = flags.DEFINE_multi_integer(
    "seed", [0, 1], "Seed of the initial parameters; may be repeated."
)
WITHOUT = flags.DEFINE_list(
    "without",
    ["ema/max>step", "loss_low>step"],
    "Direct weights (feature>output) that are 0 in the second row.",
)
RATE = flags.DEFINE_multi_float(
    "rate", [1e-3, 3e-3, 1e-2, 3e-2], "Learning rate of Adam; may be repeated."
)


def init(key: "jax.Array", widths: Sequence[int] = (1, 32, 32, 1)) -> "Params":
    """Returns kernels [in, out] with variance 1 / in, and zero biases."""
    import jax
    import jax.numpy as jnp

    sides = list(itertools.pairwise(widths))
    return [
        {"w": jax.random.normal(k, (i, o)) / jnp.sqrt(float(i)), "b": jnp.zeros(o)}
        for k, (i, o) in zip(jax.random.split(key, len(sides)), sides, strict=True)
    ]


def network(params: "Params", x: "jax.Array") -> "jax.Array":
    """Maps a scalar to a scalar."""
    import jax.numpy as jnp

    h = x[None]
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["w"] + layer["b"])
    return (h @ params[-1]["w"] + params[-1]["b"])[0]


def losses() -> dict[str, Callable[["Params"], "jax.Array"]]:
    """Returns ``params -> loss`` by name."""
    import jax
    import jax.numpy as jnp

    x = jnp.linspace(-1, 1, 64)
    target = jnp.sin(jnp.pi * x)

    def fit(params: "Params") -> "jax.Array":
        return jnp.mean((jax.vmap(lambda x: network(params, x))(x) - target) ** 2)

    def poisson(params: "Params") -> "jax.Array":
        second = jax.vmap(jax.grad(jax.grad(lambda x: network(params, x))))(x)
        edges = sum(network(params, jnp.float32(end)) ** 2 for end in (-1, 1))
        return jnp.mean((second + jnp.pi**2 * target) ** 2) + 100 * edges

    return {"fit": fit, "poisson": poisson}


def final_loss(
    tx: "optax.GradientTransformation",
    loss: Callable[["Params"], "jax.Array"],
    seed: int,
    num_steps: int,
) -> float:
    """Returns the loss after ``num_steps`` steps on all points."""
    import jax
    import optax

    tx = optax.with_extra_args_support(tx)
    params = init(jax.random.key(seed))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params: "Params") -> "jax.Array":
        start = (params, tx.init(params))
        (params, _), _ = jax.lax.scan(step, start, None, length=num_steps)
        return loss(params)

    return float(run(params))


def contenders(
    num_steps: int, without: Sequence[str], rates: Sequence[float]
) -> dict[str, "optax.GradientTransformation"]:
    """Returns the optimizers by the name of their row.

    Raises:
        ValueError: a name in ``without`` is of no direct weight.
    """
    import jax
    import numpy as np
    import optax

    import meta_opt
    from meta_opt.optimizers.controller import output_index
    from meta_opt.optimizers.weights import DEFAULT, load_theta

    theta, config = load_theta(DEFAULT)
    theta = jax.tree.map(np.array, theta)
    for name in without:
        theta["output"]["kernel"][output_index(config, name)] = 0.0
    found: dict[str, optax.GradientTransformation] = {
        DEFAULT: meta_opt.learned_optimizer(num_steps)
    }
    if without:
        found[f"{DEFAULT} without {', '.join(without)}"] = meta_opt.learned_optimizer(
            num_steps, theta=theta, config=config
        )
    found["hand-designed rule"] = meta_opt.hand_designed(num_steps)
    return found | {f"Adam, {rate:g}": optax.adam(rate) for rate in rates}


def main() -> None:
    """Prints a table of final losses."""
    from meta_opt.markdown import markdown_table

    seeds = SEED.value
    optimizers = contenders(NUM_STEPS.value, WITHOUT.value, RATE.value)
    head = ["", *(f"{name}, seed {seed}" for name in losses() for seed in seeds)]
    rows = [
        [name]
        + [
            f"{final_loss(tx, loss, seed, NUM_STEPS.value):.2g}"
            for loss in losses().values()
            for seed in seeds
        ]
        for name, tx in optimizers.items()
    ]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    cli.run(main)
