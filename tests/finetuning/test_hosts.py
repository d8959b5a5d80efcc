"""Several processes fine-tune as one does, and stop and resume together.

Tolerance: the processes run the program that one process runs on as many devices, but
Gloo sums between processes in another order than XLA within one. That changes sums by a
few float32 roundings (1e-7 relative). Measured differences after the four steps of SGD
here were up to 6e-7 of a tensor's largest element, or of 1 for small ones: gradients
that are zero but for rounding differ as a whole. Between runs of the same processes
nothing differs at all.
"""

import json
import os
import signal

import finetuning_toy as toy
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from several_processes import finish, free_port, start

from meta_opt.finetuning.ledger import read_ledger
from meta_opt.parallel import processes
from meta_opt.parallel.mesh import MeshConfig
from meta_opt.parallel.processes import start_processes
from meta_opt.run_log import read_records

TOLERANCE = 3e-6
STEPS = 4
DEVICES = 4
FSDP = ("--config.mesh.fsdp=-1",)
DATA_AND_FSDP = ("--config.mesh.data=2", "--config.mesh.fsdp=-1")
SETTINGS = (
    "--config=configs/finetune.py:smoke",
    "--config.model.size=toy",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.01",
    f"--config.num_steps={STEPS}",
    "--config.loop.eval_every=4",
    "--config.loop.checkpoint_every=2",
    "--config.loop.log_every=1",
    # A process draws for its rows what one process draws for them.
    "--config.pipeline.flip=True",
    "--config.pipeline.crop_pixels=2",
)


def fine_tune(workdir, count, arguments, extra=None, workdirs=None):
    """Runs the program in so many processes; extra arguments for each by its index."""
    address = f"localhost:{free_port()}"
    others = ("--coordinator", address, "--processes", str(count))
    processes = [
        start(
            (
                "tests/fixtures/hosts_toy.py",
                *SETTINGS,
                *arguments,
                f"--workdir={workdirs[index] if workdirs else workdir}",
                f"--config.export.path={workdir}/exported",
                *((*others, "--process", str(index)) if count > 1 else ()),
                *(extra or {}).get(index, ()),
            ),
            DEVICES // count,
        )
        for index in range(count)
    ]
    return finish(processes)


def check_finished(ended):
    for code, _, errors in ended:
        assert code == 0, errors
    assert "test zero_shot_macro_f1" in ended[0][1]
    for _, printed, _ in ended[1:]:
        assert "test " not in printed and "seconds" not in printed


def final_state(workdir, count):
    """The state that all processes end with."""
    states = [dict(np.load(workdir / f"final-{i}.npz")) for i in range(count)]
    for other in states[1:]:
        assert_same(other, states[0])
    return states[0]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(np.max(np.abs(value), initial=0)), 1.0)
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=TOLERANCE * scale, err_msg=name
        )


def assert_one_run(two, one):
    """Two processes' run is that of one, in all that it leaves."""
    assert_close(final_state(two, 2), final_state(one, 1))
    rows, expected = (read_records(path / "metrics.jsonl") for path in (two, one))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert_close(row, wanted)
    results = [json.loads((path / "result.json").read_text()) for path in (two, one)]
    assert_close(results[0]["test"], results[1]["test"])
    for name in ("optimizer_bytes", "trainable", "nonfinite"):
        assert results[0][name] == results[1][name]
    # Tokens of all rows, whichever process read them.
    ledgers = [read_ledger(path).entries for path in (two, one)]
    for entry, wanted in zip(*ledgers, strict=True):
        for name in ("tokens_in", "tokens_out"):
            found = getattr(entry.amounts, name)
            assert found == pytest.approx(getattr(wanted.amounts, name), rel=1e-12)
    assert ledgers[0][0].amounts.tokens_in > 0
    exported = [load_file(path / "exported.safetensors") for path in (two, one)]
    assert exported[0].keys() == exported[1].keys()
    for name, value in exported[1].items():
        # One unit of float16 in the last place.
        np.testing.assert_allclose(exported[0][name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_two_processes_stopped_by_a_signal_to_one_of_them_are_one(tmp_path):
    program, mesh = "tests/fixtures/finetuning_toy.py", {"fsdp": DEVICES}

    def run(*extra):
        address = f"localhost:{free_port()}"
        arguments = ("-W", "error", program, str(tmp_path), "--mesh", json.dumps(mesh))
        others = ("--coordinator", address, "--processes", "2", "--process")
        return finish(
            [
                start(
                    (*arguments, *others, str(i), *(extra if i else ())), DEVICES // 2
                )
                for i in range(2)
            ]
        )

    for code, _, errors in run("--signal", "SIGTERM", "--at", "11"):
        assert code == 128 + signal.SIGTERM, errors
    assert not (tmp_path / "params.npz").exists()
    for code, _, errors in run():
        assert code == 0, errors
        assert f"resuming {tmp_path} from step 12" in errors
    one = toy.train(mesh=MeshConfig(**mesh))
    expected = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in toy.leaves_by_path(one.state.params)
    }
    assert_close(dict(np.load(tmp_path / "params.npz")), expected)
    rows = read_records(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in one.history]
    for row, wanted in zip(rows, one.history, strict=True):
        assert_close(row, wanted)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Where two processes ended that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken")
    check_finished(fine_tune(workdir, 2, FSDP))
    return workdir


def assert_same_run(found, expected):
    """Two runs of two processes left the same bits."""
    assert_same(final_state(found, 2), final_state(expected, 2))
    rows = [(path / "metrics.jsonl").read_bytes() for path in (found, expected)]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [FSDP, DATA_AND_FSDP], ids=["fsdp", "data-fsdp"])
def test_two_processes_are_one(tmp_path, mesh):
    check_finished(fine_tune(tmp_path / "one", 1, mesh))
    check_finished(fine_tune(tmp_path / "two", 2, mesh))
    assert_one_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_micro_batches_over_data_and_fsdp_are_those_of_one(tmp_path):
    # A contrastive loss tells which rows share a micro-batch.
    mesh = (*DATA_AND_FSDP, "--config.loop.accumulation_steps=2")
    check_finished(fine_tune(tmp_path / "one", 1, mesh))
    check_finished(fine_tune(tmp_path / "two", 2, mesh))
    assert_one_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_all_and_they_resume_to_the_same_bits(
    tmp_path, unbroken, name, who
):
    signalled = (f"--signal={name}", "--at=3")
    stopped = fine_tune(tmp_path, 2, FSDP, {index: signalled for index in who})
    for code, _, errors in stopped:
        assert code == 128 + getattr(signal, name), errors
        assert f"stopped by {name} at step 4" in errors
    check_finished(fine_tune(tmp_path, 2, FSDP))
    assert_same_run(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("at", [3, 4])
def test_kill_9_is_named_by_the_other_and_both_resume_to_the_same_bits(
    tmp_path, unbroken, who, at
):
    killed = ("--signal=SIGKILL", f"--at={at}")
    ended = fine_tune(tmp_path, 2, (*FSDP, "--process_timeout=60"), {who: killed})
    assert ended[who][0] == -signal.SIGKILL, ended[who][2]
    # JAX ends it from C++, or it fails itself at a connection that is broken.
    code, _, errors = ended[1 - who]
    assert code == (1 if who else -signal.SIGABRT)
    *_, line = errors.splitlines()
    assert line.startswith(f"process {who} of 2 "), errors
    assert " lost: " in line or " lost; " in line
    assert "Traceback" not in errors and "@" not in errors
    resumed = fine_tune(tmp_path, 2, FSDP)
    check_finished(resumed)
    assert "from step 2" in resumed[0][2] or "resuming" not in resumed[0][2]
    assert_same_run(tmp_path, unbroken)


@pytest.mark.slow
def test_processes_without_a_common_folder_are_told(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for code, _, errors in fine_tune(tmp_path, 2, FSDP, workdirs=folders):
        assert code == 1
        assert "the 2 processes do not see the same" in errors


# Prints what the two processes of a step know of each other.
TOGETHER = """
import json, signal, jax, numpy as np
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, local_rows, make_mesh
from meta_opt.parallel.placement import place, to_host
from meta_opt.parallel.processes import LaggedMax, any_process, start_processes
start_processes()
index = jax.process_index()
meshes = [make_mesh(MeshConfig(**sizes)) for sizes in (
    dict(fsdp=4), dict(data=2, fsdp=2), dict(tensor=4), dict(fsdp=2, tensor=2)
)]
x = np.arange(8.0)
lagged = LaggedMax(meshes[1])
print(json.dumps({
    "count": jax.process_count(),
    "gpus": jax.config._read("jax_cuda_visible_devices"),
    "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "rows": [local_rows(mesh, 8).tolist() for mesh in meshes],
    "whole": [to_host(place(x, batch_sharding(m))).tolist() for m in meshes],
    "any": [any_process(index == 0), any_process(False)],
    "lagged": [lagged(3 * index), lagged(2 - index), lagged(0)],
}))
"""


@pytest.mark.parametrize("tasks_on_node", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_tasks_of_a_slurm_step_find_each_other(tasks_on_node):
    # JAX picks a port by the job's number.
    job = str(free_port() % 4096)
    step = {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": str(2 // tasks_on_node),
    }
    processes = [
        start(
            ("-W", "error", "-c", TOGETHER),
            2,
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index % tasks_on_node),
            **step,
        )
        for index in range(2)
    ]
    told = []
    for code, printed, errors in finish(processes, 60):
        assert code == 0, errors
        told.append(json.loads(printed.splitlines()[-1]))
    for index, of_process in enumerate(told):
        assert of_process["count"] == 2
        assert of_process["term"]
        # A node's only task has all its GPUs.
        gpus = "all" if tasks_on_node == 1 else str(index)
        assert of_process["gpus"] == gpus
        assert of_process["whole"] == [list(range(8))] * 4
        assert of_process["any"] == [True, False]
        assert of_process["lagged"] == [0, 3, 2]
    everything = list(range(8))
    assert [rows for rows in zip(*(t["rows"] for t in told), strict=True)] == [
        ([0, 1, 2, 3], [4, 5, 6, 7]),
        ([0, 1, 4, 5], [2, 3, 6, 7]),
        (everything, everything),
        ([0, 1, 2, 3], [4, 5, 6, 7]),
    ]


@pytest.fixture
def launched(monkeypatch):
    """Starts under an environment, with JAX's own start replaced."""

    def launch(environment, initialize, tpu=False):
        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        monkeypatch.setattr(jax.config, "update", lambda *_: None)
        monkeypatch.setattr(processes, "_perhaps_tpu", lambda: tpu)
        monkeypatch.setattr(os, "environ", environment)
        start_processes()

    return launch


def no_cluster(**_):
    raise ValueError("coordinator_address should be defined.")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        # A shell in a job of four tasks, and the batch script of one.
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_alone_joins_nothing(launched, environment):
    launched(environment, lambda **_: pytest.fail("joined"))


def test_libtpu_without_a_tpu_is_alone(launched):
    launched({}, no_cluster, tpu=True)


def test_a_tpu_asks_jax_for_its_hosts(launched):
    asked = []
    launched({}, lambda **kwargs: asked.append(kwargs), tpu=True)
    assert asked == [{"local_device_ids": None, "heartbeat_timeout_seconds": 100}]


def test_a_launcher_that_jax_does_not_know_is_named(launched):
    with pytest.raises(ValueError, match="JAX does not find the others; name them"):
        launched({"OMPI_COMM_WORLD_SIZE": "2"}, no_cluster)


@pytest.mark.parametrize(
    "arguments",
    [("", 2, 0), ("host:1", None, 0), ("host:1", 2, None), ("host:1", 2, 2)],
)
def test_half_of_the_flags_is_an_error(arguments):
    with pytest.raises(ValueError, match=r"process .* of .* with coordinator"):
        start_processes(*arguments)
