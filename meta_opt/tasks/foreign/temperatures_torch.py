"""Forecast of temperatures from three days, with the names and layout of nn.LSTM."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import table
from meta_opt.tasks.task import Arrays, Splits, Task

SEEN, AHEAD, HIDDEN = 48, 12, 48


def state_dict(key: jax.Array) -> dict[str, jax.Array]:
    """Initialises an LSTM layer and a linear readout uniformly, as in PyTorch."""
    bound, shapes = (
        HIDDEN**-0.5,
        {
            "lstm.weight_ih_l0": (4 * HIDDEN, 3),
            "lstm.weight_hh_l0": (4 * HIDDEN, HIDDEN),
            "lstm.bias_ih_l0": (4 * HIDDEN,),
            "lstm.bias_hh_l0": (4 * HIDDEN,),
            "fc.weight": (AHEAD, HIDDEN),
            "fc.bias": (AHEAD,),
        },
    )
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(k, shape, minval=-bound, maxval=bound)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def forecast(sd: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Maps [B, T, 3] to the temperatures of the next hours, [B, 12]."""

    def cell(carry: tuple, x_t: jax.Array) -> tuple:
        h, c = carry
        gates = x_t @ sd["lstm.weight_ih_l0"].T + h @ sd["lstm.weight_hh_l0"].T
        gates = gates + (sd["lstm.bias_ih_l0"] + sd["lstm.bias_hh_l0"])[None]
        i, f, g, o = jnp.split(gates, 4, 1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    zero = jnp.zeros((len(x), HIDDEN))
    (h, _), _ = jax.lax.scan(cell, (zero, zero), x.swapaxes(0, 1))
    return h @ sd["fc.weight"].T + sd["fc.bias"][None]


def temperatures_lstm(folder: str | None) -> Task:
    """Hourly data of two cities: ten months for training, the last weeks to test."""
    train, validation, test = [], [], []
    for city in ("sf-temps.csv", "seattle-temps.csv"):
        rows = table(city, folder)
        t = (np.asarray([float(row["temp"]) for row in rows], np.float32) - 53.0) / 9.0
        hour = np.arange(len(t)) % 24 * (2 * np.pi / 24)
        series = np.stack([t, np.sin(hour), np.cos(hour)], -1).astype(np.float32)
        view = np.lib.stride_tricks.sliding_window_view(series, SEEN + AHEAD, 0)
        view = view.transpose(0, 2, 1)
        gap = SEEN + AHEAD
        train.append(view[:6800])
        validation.append(view[6800 + gap : 7500 : 7])
        test.append(view[7500 + gap :: 7])

    def arrays(parts: list[np.ndarray]) -> Arrays:
        both = np.concatenate(parts)
        return {
            "past": jnp.asarray(both[:, :SEEN]),
            "future": jnp.asarray(both[:, SEEN:, 0]),
        }

    def criterion(
        sd: dict[str, jax.Array], past: jax.Array, future: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        off = forecast(sd, past) - future
        return jnp.mean(off**2), jnp.mean(jnp.minimum(jnp.abs(off), 1.0))

    def train_loss(
        sd: dict[str, jax.Array], arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # Sensor noise and a random offset, so that no window repeats.
        jitter, offset = jax.random.split(key)
        n = len(arrays["past"])
        shift = 0.3 * jax.random.normal(offset, (n, 1))
        noise = 0.05 * jax.random.normal(jitter, (n, SEEN))
        past = arrays["past"].at[..., 0].add(shift + noise)
        return criterion(sd, past, arrays["future"] + shift)

    return Task(
        name="temperatures_lstm",
        dataset="foreign",
        init=state_dict,
        loss=lambda sd, arrays: criterion(sd, arrays["past"], arrays["future"]),
        splits=Splits(arrays(train), arrays(validation), arrays(test)),
        batch_size=32,
        horizons=(100, 500),
        train_loss=train_loss,
    )
