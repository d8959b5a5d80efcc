"""Fuel consumption of cars from tabular data: an Equinox MLP with the Huber loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import deal, table
from meta_opt.tasks.task import Arrays, Task

COLUMNS = ("Cylinders", "Displacement", "Horsepower", "Weight_in_lbs", "Acceleration")
ORIGINS = ("USA", "Europe", "Japan")


def cars_regression(folder: str | None) -> Task:
    """392 cars, 200 for training; the error is |residual| / std, at most 1."""
    rows = [
        row
        for row in table("cars.json", folder)
        if None not in (row["Miles_per_Gallon"], *(row[c] for c in COLUMNS))
    ]
    numbers = np.asarray([[row[c] for c in COLUMNS] for row in rows], np.float32)
    year = np.asarray([float(row["Year"][:4]) for row in rows], np.float32)[:, None]
    numbers = np.concatenate([numbers, year], 1)
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    origin = np.asarray([[row["Origin"] == o for o in ORIGINS] for row in rows])
    x = np.concatenate([numbers, origin], 1).astype(np.float32)
    y = np.asarray([row["Miles_per_Gallon"] for row in rows], np.float32)
    arrays = {"x": x, "y": (y - y.mean()) / y.std()}

    def make(key: jax.Array) -> eqx.nn.MLP:
        return eqx.nn.MLP(9, "scalar", 64, 3, jax.nn.silu, key=key)

    _, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)

    def loss(params: Any, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        net = eqx.combine(params, static)
        off = jnp.abs(jax.vmap(net)(arrays["x"]) - arrays["y"])
        huber = jnp.where(off < 1.0, 0.5 * off**2, off - 0.5)
        return huber.mean(), jnp.minimum(off, 1.0).mean()

    def train_loss(
        params: Any, arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # Randomly drop input columns.
        seen = jax.random.bernoulli(key, 0.95, arrays["x"].shape)
        return loss(params, {**arrays, "x": arrays["x"] * seen})

    return Task(
        name="cars_regression",
        dataset="foreign",
        init=lambda key: eqx.filter(make(key), eqx.is_inexact_array),
        loss=loss,
        splits=deal(arrays, 200, 64, 128),
        batch_size=16,
        horizons=(60, 300),
        train_loss=train_loss,
    )
