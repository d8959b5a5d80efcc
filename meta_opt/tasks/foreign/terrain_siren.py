"""Elevation as a function of position: SIREN (Sitzmann et al., arXiv:2006.09661)."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import deal, elevations
from meta_opt.tasks.task import Arrays, Task

H, OMEGA = 96, 20.0


def _init(key: jax.Array) -> dict[str, jax.Array]:
    k = jax.random.split(key, 4)
    r = (6 / H) ** 0.5 / OMEGA

    def u(key: jax.Array, shape: tuple[int, ...], r: float) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-r, maxval=r)

    return {
        **{"w0": u(k[0], (2, H), 0.5), "b0": jnp.zeros((1, H))},
        **{"w1": u(k[1], (H, H), r), "b1": jnp.zeros((1, H))},
        **{"w2": u(k[2], (H, H), r), "b2": jnp.zeros((1, H))},
        **{"w3": u(k[3], (H, 1), r), "b3": jnp.zeros((1, 1))},
    }


def _f(p: dict[str, jax.Array], xy: jax.Array) -> jax.Array:
    h = jnp.sin(OMEGA * (xy @ p["w0"] + p["b0"]))
    h = jnp.sin(OMEGA * (h @ p["w1"] + p["b1"]))
    h = jnp.sin(OMEGA * (h @ p["w2"] + p["b2"]))
    return (h @ p["w3"] + p["b3"])[:, 0]


def terrain_siren(folder: str | None) -> Task:
    """Elevations along a fault at 6,000 positions; the error is |residual|, up to 1."""
    del folder
    z = elevations()
    rows, columns = np.indices(z.shape)
    xy = np.stack([rows / len(z), columns / len(z)], -1) * 2 - 1
    arrays = {"xy": xy.reshape(-1, 2).astype(np.float32), "z": z.reshape(-1)}

    def loss(p: dict, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        d = _f(p, arrays["xy"]) - arrays["z"]
        return jnp.mean(d * d), jnp.mean(jnp.minimum(jnp.abs(d), 1.0))

    return Task(
        name="terrain_siren",
        dataset="terrain",
        init=_init,
        loss=loss,
        splits=deal(arrays, 6000, 1000, 2000),
        batch_size=128,
        horizons=(200, 1000),
        provides_loss=False,
    )
