"""Throughput of MELTR: ``full`` is reported, ``smoke`` is a quick check."""

import ml_collections

from configs import common

_METHODS = (
    *("jvp", "same_batch", "double_backward", "neumann", "finite_differences", "sama"),
)
_SMALLER = ("half_batch", "same_half_batch", "quarter_batch")
"""Meta-steps on fewer examples than a training step."""


def full() -> ml_collections.ConfigDict:
    """By losses, model, devices and method; up to ten minutes per cell."""
    cases = {}
    # Timed cases first; they also compile the programs.
    for model, num_losses in (("nano", 8), ("nano", 1), ("small", 8), ("base", 8)):
        cases[f"time_{model}_{num_losses}"] = dict(
            model=model,
            num_losses=num_losses,
            level="timed",
            rounds=10 if model == "nano" else 5,
            intervals=(3, 10) if (model, num_losses) == ("nano", 8) else (),
        )
    for num_losses in range(8, 0, -1):
        for model in ("nano", "small", "base"):
            cases[f"losses_{model}_{num_losses}"] = dict(
                model=model, num_losses=num_losses, level="traced"
            )
    for method in (*_METHODS, *_SMALLER):
        cases[f"method_small_{method}"] = dict(
            model="small", num_losses=8, level="traced", method=method
        )
    # With one loss the primary one has the largest share.
    for method in ("same_batch", *_SMALLER):
        for model, size in (("nano", 8), ("base", 8), ("So400m/14", 32), ("3B/14", 32)):
            cases[f"method_{model.split('/')[0]}_{method}"] = dict(
                model=model,
                num_losses=1,
                batch_size=size,
                level="traced",
                method=method,
            )
    for model in ("small", "base"):
        cases[f"lora_{model}"] = dict(
            model=model, num_losses=8, level="traced", trainable="lora"
        )
    for model, most in (("So400m/14", 4), ("3B/14", 2)):
        for num_losses in range(most, 0, -1):
            cases[f"losses_{model.split('/')[0]}_{num_losses}"] = dict(
                model=model, num_losses=num_losses, batch_size=32, level="traced"
            )
    # Few losses: compilation dominates, and communication is that of the gradients.
    for devices in (1, 2, 4, 8):
        cases[f"devices_nano_{devices}"] = dict(
            model="nano", num_losses=2, devices=devices
        )
    for trainable in ("all", "lora"):
        cases[f"memory_small_{trainable}"] = dict(
            model="small", num_losses=2, trainable=trainable
        )
    for method in (*_METHODS, *_SMALLER):
        cases[f"memory_nano_{method}"] = dict(model="nano", num_losses=2, method=method)
    for trainable in ("all", "lora"):
        cases[f"tpu_So400m_{trainable}"] = dict(
            model="So400m/14",
            num_losses=4,
            batch_size=128,
            trainable=trainable,
            topology="v5e:2x2",
        )
        cases[f"tpu_3B_{trainable}"] = dict(
            model="3B/14",
            num_losses=2,
            batch_size=128,
            trainable=trainable,
            topology="v5e:4x4",
        )
    return _config(cases, "results/meltr_throughput")


def smoke() -> ml_collections.ConfigDict:
    """Operations of two small models under few losses."""
    cases = {}
    for model, num_losses in (("nano", 1), ("nano", 2), ("nano", 4), ("small", 2)):
        cases[f"losses_{model}_{num_losses}"] = dict(
            model=model, num_losses=num_losses, batch_size=2, level="traced"
        )
    return _config(cases, "runs/meltr_throughput/smoke")


def _config(cases: dict, results: str) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.cases = cases
    # Steps between two meta-steps (K).
    config.intervals = (1, 3, 5, 10, 20)
    # Held out of the fit of the cost model.
    config.held_out = dict(models=("base",), num_losses=(5,), intervals=(5,))
    config.results = results
    return config


get_config = common.variants(full, smoke)
