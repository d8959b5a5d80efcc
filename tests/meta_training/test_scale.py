"""Meta-training over eight devices, and over two processes, equals that on one device.

Tolerances: a device's share of the particles is another batch size, for which XLA sums
in another order, and means are summed device by device. Both change results by a few
float32 roundings (1e-7 relative), which the few inner and outer steps here can amplify;
measured differences were up to 4e-6, of gradients of unit norm.
"""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meta_training_toy import config, line_task, parametrisation, validate
from paths import FIXTURES

from meta_opt.meta_training.config import ESTIMATORS
from meta_opt.meta_training.estimation import make_estimator
from meta_opt.meta_training.outer_loop import meta_train
from meta_opt.optimizers.controller import init_theta
from meta_opt.parallel.mesh import replicated
from meta_opt.parallel.particles import particle_mesh, vmap_over
from meta_opt.run_log import read_records
from meta_opt.tasks.families import make_task

PROGRAM = FIXTURES / "meta_training_toy.py"
TOLERANCE = 2e-5


def close(a, b, tolerance=TOLERANCE):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("count", [8, 16, 5, 19])
def test_vmap_over_eight_devices_is_vmap(count):
    def run(x, y, key):
        steps = jnp.int32(4 * x)  # Other lengths for other particles.
        draw = jax.random.normal(key)
        return jax.grad(
            lambda y: draw * x * jax.lax.scan(lambda c, _: (c * y, c), y, None, 3)[0]
        )(y), jax.lax.fori_loop(0, steps, lambda i, c: c + y * draw, x)

    args = (jnp.linspace(0, 3, count), jnp.float32(1.1))
    keys = jax.random.split(jax.random.key(0), count)
    program = jax.jit(vmap_over(particle_mesh())(run, (0, None, 0)))
    close(program(*args, keys), jax.vmap(run, (0, None, 0))(*args, keys), 1e-6)
    if count % 8 == 0:
        # Each device is on its own until results are averaged.
        text = program.lower(*args, keys).compile().as_text()
        assert not re.search("all-reduce|all-gather|collective-permute", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimate_on_eight_devices_is_that_of_one(name):
    settings = config(estimator=name, particles=8, pairs=8, windows=3)
    mesh = particle_mesh()
    assert mesh.size == 8
    theta = init_theta(jax.random.key(1), settings.controller)
    noise = jax.random.normal(jax.random.key(2), theta["output"]["kernel"].shape)
    theta["output"]["kernel"] += 0.1 * noise

    def two_estimates(mesh):
        here = jax.devices()[0] if mesh is None else replicated(mesh)
        start = jax.device_put(theta, here)
        estimator = make_estimator(line_task(), settings, parametrisation(), mesh)
        state = estimator.init(start, jax.random.key(9))
        first, state = estimator.estimate(start, state, jax.random.key(3))
        second, state = estimator.estimate(start, state, jax.random.key(4))
        assert estimator.estimate._cache_size() == 1
        return first, second, state

    alone, shared = two_estimates(None), two_estimates(mesh)
    close(alone, shared)
    assert float(jnp.max(jnp.abs(alone[1].gradient["output"]["kernel"]))) > 0.01
    assert shared[1].gradient["output"]["kernel"].is_fully_replicated
    for leaf in jax.tree.leaves(shared[2]):
        assert leaf.sharding.spec[0] == "particles"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bptt", "es", "nres"])
def test_meta_training_of_digits_on_eight_devices_is_that_on_one(tmp_path, name):
    task = dataclasses.replace(make_task("digits_mlp"), horizons=(4, 8))
    settings = config(
        families=("digits_mlp",),
        estimator=name,
        particles=8,
        pairs=8,
        windows=2,
        outer_steps=2,
    )
    # One family is on one of the eight devices; particles are on all of them.
    runs = {
        parallel: meta_train(
            dataclasses.replace(settings, parallel=parallel),
            {"digits_mlp": task},
            tmp_path / parallel,
            show_progress=False,
        )
        for parallel in ("families", "particles")
    }
    close(runs["families"].theta, runs["particles"].theta, 1e-4)
    rows = [read_records(tmp_path / name / "metrics.jsonl") for name in runs]
    close(rows[0], rows[1], 1e-4)


def run_processes(workdir, count, devices, **settings):
    """Meta-trains in ``count`` processes; what they print, which must be the same."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-W", "error", str(PROGRAM), str(workdir)),
        *("--processes", str(count), "--devices", str(devices)),
        *("--coordinator", f"localhost:{port}", "--settings", json.dumps(settings)),
    ]
    root = str(PROGRAM.parents[2])
    processes = [
        subprocess.Popen(
            [*command, "--index", str(index)],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": root,
                # The resumed run compiles nothing anew.
                "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [p.communicate(timeout=600) for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    # The last line; before it Gloo tells of its connections.
    printed = [out.splitlines()[-1] for out, _ in outputs]
    assert printed.count(printed[0]) == count  # All end in the same weights.
    return json.loads(printed[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["es", "nres"])
def test_two_processes_are_one(tmp_path, name):
    settings = dict(
        estimator=name,
        parallel="particles",
        pairs=4,
        windows=3,
        outer_steps=3,
        validate_every=2,
        budget_seconds=1000,
    )
    # Stopped and resumed: both processes write the checkpoint and read it.
    run_processes(tmp_path / "two", 2, 2, stop_after=2, **settings)
    two = run_processes(tmp_path / "two", 2, 2, **settings)
    one = run_processes(tmp_path / "one", 1, 1, **settings)
    assert two["steps"] == one["steps"] == 3
    np.testing.assert_allclose(two["score"], one["score"], rtol=TOLERANCE)
    for x, y in zip(two["theta"], one["theta"], strict=True):
        np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE)
    rows = [read_records(tmp_path / d / "metrics.jsonl") for d in ("two", "one")]
    assert [row["step"] for row in rows[0]] == [1, 2, 3]
    close(rows[0], rows[1])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("truncated_bptt", "particles=2 cannot be shared evenly by 8 devices; take "),
        ("pes", "pairs=2 cannot be shared evenly by 8 devices; take pairs=8"),
    ],
)
def test_particles_that_do_not_divide_are_named(tmp_path, estimator, message):
    settings = config(estimator=estimator, parallel="particles", windows=3)
    with pytest.raises(ValueError, match=message):
        meta_train(settings, {"line": line_task()}, tmp_path, validation=validate)


def test_several_processes_cannot_share_families(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="set parallel='particles'"):
        meta_train(config(), {"line": line_task()}, tmp_path)
