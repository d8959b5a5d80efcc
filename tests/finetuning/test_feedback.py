"""The feedback module: injected faults, and what is done about them."""

import dataclasses
import signal

import jax
import numpy as np
import optax
import pytest
from finetuning_toy import (
    CONFIG,
    SignallingBatches,
    digest,
    make_batches,
    make_data,
    make_params,
    train,
)

from meta_opt.finetuning import step_program
from meta_opt.finetuning.planning import peak_bytes
from meta_opt.finetuning.recovery import RecoveryConfig, ResourceMonitor, RunMonitor
from meta_opt.interruption import Interrupted
from meta_opt.run_log import read_records

ENABLED = RecoveryConfig(enabled=True, window=3, sustained=2, recover=3)
LONG = dataclasses.replace(
    CONFIG,
    num_steps=96,
    eval_every=8,
    log_every=4,
    checkpoint_every=8,
    recovery=ENABLED,
)


class Faulty:
    """Batches that a function changes, by the number of the batch."""

    def __init__(self, change, batch_size=CONFIG.batch_size):
        self._batches, self._change = make_batches(make_data(), batch_size), change
        self._count = 0

    def __next__(self):
        batch = self._change(self._count, next(self._batches))
        self._count += 1
        return batch

    def get_state(self):
        return {"batches": self._batches.get_state(), "count": self._count}

    def set_state(self, state):
        self._batches.set_state(state["batches"])
        self._count = state["count"]


def with_nan(first, last):
    def change(number, batch):
        if first <= number < last:
            batch = {**batch, "x": np.full_like(batch["x"], np.nan)}
        return batch

    return change


def kinds(result):
    return [record["action"] for record in result.actions]


def losses(result):
    return [r["train/loss"] for r in result.history if "train/loss" in r]


# What the loop does


def test_a_nan_batch_is_rolled_back(tmp_path):
    plain = dataclasses.replace(LONG, recovery=RecoveryConfig())
    broken = train(config=plain, batches=Faulty(with_nan(41, 42)), tx=optax.adam(3e-3))
    assert not np.isfinite(losses(broken)[-1])
    result = train(
        tmp_path, LONG, batches=Faulty(with_nan(41, 42)), tx=optax.adam(3e-3)
    )
    assert kinds(result) == ["shrink", "roll back", "grow"]
    assert [r["step"] for r in result.actions[:2]] == [44, 44]
    assert "losses are not finite" in result.actions[1]["reason"]
    assert np.all(np.isfinite(jax.tree.leaves(result.state.params)[0]))
    assert losses(result)[-1] < 0.7 * losses(result)[0]
    assert float(result.state.scale) == 1.0
    assert read_records(tmp_path / "actions.jsonl") == result.actions


def test_a_learning_rate_spike_is_undone():
    def schedule(count):
        spike = (count >= 40) & (count < 44)
        return jax.numpy.where(spike, 3.0, 3e-3)

    plain = dataclasses.replace(LONG, recovery=RecoveryConfig())
    spoilt = losses(train(config=plain, tx=optax.adam(schedule)))
    result = train(config=LONG, tx=optax.adam(schedule))
    assert "roll back" in kinds(result)
    assert "above 2 times the usual" in result.actions[0]["reason"]
    # The optimizer's own count goes back too, and meets the spike again, smaller.
    assert losses(result)[-1] < 0.5 * spoilt[-1]


def test_corrupted_labels_midway_end_the_run():
    def corrupted(number, batch):
        if number >= 48:
            noise = np.random.default_rng(number).normal(size=batch["y"].shape)
            batch = {**batch, "y": (5 * noise).astype(np.float32)}
        return batch

    config = dataclasses.replace(
        LONG, recovery=dataclasses.replace(ENABLED, max_rollbacks=1)
    )
    result = train(config=config, batches=Faulty(corrupted), tx=optax.adam(3e-3))
    assert kinds(result)[-1] == "stop" and kinds(result).count("roll back") == 1
    assert "after 1 times rolling back" in result.actions[-1]["reason"]
    assert int(result.state.step) < LONG.num_steps
    # It ended where labels were not learned yet, and was evaluated there.
    validation = [r for r in result.history if "validation/loss" in r]
    first, last = (r["validation/loss"] for r in (validation[0], validation[-1]))
    assert last < first


def test_a_run_without_progress_stops_early_and_stays_stopped(tmp_path):
    config = dataclasses.replace(
        LONG, recovery=dataclasses.replace(ENABLED, patience=3)
    )
    frozen = optax.set_to_zero()
    result = train(tmp_path, config, tx=frozen)
    assert kinds(result) == ["stop"]
    assert int(result.state.step) == 8 * 3
    assert "3 evaluations without a metric better" in result.actions[0]["reason"]
    again = train(tmp_path, config, tx=frozen, evaluate=None)
    assert int(again.state.step) == 24 and again.actions == result.actions


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11),
    reason="XLA's peak of a program as small as this no longer falls with its batch",
)
def test_a_batch_is_cut_to_what_memory_holds(monkeypatch):
    config = dataclasses.replace(CONFIG, num_steps=4, log_every=1, eval_every=4)
    params = make_params(width=64)

    needed = []

    def measured(compiled):
        needed.append(peak_bytes(compiled))
        return needed[-1]

    monkeypatch.setattr(step_program, "peak_bytes", measured)

    def run(limit, size=64):
        recovery = dataclasses.replace(ENABLED, memory_limit=limit)
        return train(
            config=dataclasses.replace(config, batch_size=size, recovery=recovery),
            batches=make_batches(make_data(count=128), size),
            params=params,
            tx=optax.sgd(0.01),
        )

    whole = run(10**9)
    assert whole.actions == []
    cut = run(needed[0] - 1)
    # Once or twice, by XLA's version: the sums of gradients take memory too.
    cuts = len(cut.actions)
    assert kinds(cut) == ["micro-batch"] * cuts and cuts in (1, 2)
    assert needed[1] == needed[0] > needed[1 + cuts]
    assert f"it is cut in {2**cuts} micro-batches" in cut.actions[-1]["reason"]
    # The noise of the inputs differs; the means do not.
    np.testing.assert_allclose(losses(cut), losses(whole), rtol=0.1)
    with pytest.raises(ValueError, match=r"MiB .* 4 over 1 shards cannot be cut"):
        run(1000, size=4)  # Every size down to one is compiled.


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_the_same_bits(tmp_path):
    fault = with_nan(41, 42)
    unbroken = train(tmp_path / "a", LONG, batches=Faulty(fault), tx=optax.adam(3e-3))
    for at in (46, 70):
        batches = SignallingBatches(Faulty(fault), signal.SIGTERM, at)
        folder = tmp_path / f"b{at}"
        with pytest.raises(Interrupted):
            train(folder, LONG, batches=batches, tx=optax.adam(3e-3))
        again = train(folder, LONG, batches=Faulty(fault), tx=optax.adam(3e-3))
        assert digest(again.state.params) == digest(unbroken.state.params)
        assert again.actions == unbroken.actions


@pytest.mark.parametrize(
    "at",
    # After the batch of NaN and before the record that finds it.
    [43, *(pytest.param(x, marks=pytest.mark.slow) for x in (3, 42))],
)
def test_a_run_interrupted_on_its_way_to_a_rollback_recovers(tmp_path, at):
    """Its checkpoint has the NaN already, and must not be what is rolled back to."""
    first = 1 if at < 8 else 41
    fault = with_nan(first, first + 1)
    unbroken = train(config=LONG, batches=Faulty(fault), tx=optax.adam(3e-3))
    batches = SignallingBatches(Faulty(fault), signal.SIGTERM, at)
    with pytest.raises(Interrupted, match=f"at step {at}"):
        train(tmp_path, LONG, batches=batches, tx=optax.adam(3e-3))
    again = train(tmp_path, LONG, batches=Faulty(fault), tx=optax.adam(3e-3))
    assert kinds(again) == ["shrink", "roll back", "grow"]
    assert digest(again.state.params) == digest(unbroken.state.params)
    assert again.actions == unbroken.actions


# What it decides


def test_a_watch_that_is_off_does_nothing():
    monitor = RunMonitor(RecoveryConfig(), "min")
    assert monitor.record([1.0]) == monitor.record([np.nan]) == []
    assert monitor.metric(np.inf) == [] and monitor.scale == 1.0


def test_one_bad_record_shrinks_and_good_ones_grow():
    monitor = RunMonitor(ENABLED, "min")
    for loss in (1.0, 0.9, 1.1):
        assert monitor.record([loss, np.nan, loss]) == []  # A safeguard skipped one.
    (action,) = monitor.record([5.0])
    assert action.kind == "shrink" and monitor.scale == 0.5 and not monitor.good
    assert [monitor.record([1.0]) for _ in range(2)] == [[], []]
    (action,) = monitor.record([1.0])
    assert action.kind == "grow" and monitor.scale == 1.0 and monitor.good
    # Noise about a loss that is nearly gone means nothing.
    small = RunMonitor(ENABLED, "min")
    for loss in (1.0, 1e-4, 1e-4, 1e-4, 1e-3):
        assert small.record([loss]) == []


def test_patience_counts_from_the_best_whichever_way():
    for mode, values in (("min", (3, 2, 2.5, 2.1)), ("max", (2, 3, 2.5, 2.9))):
        monitor = RunMonitor(dataclasses.replace(ENABLED, patience=2), mode)
        found = [monitor.metric(v) for v in values]
        assert [len(actions) for actions in found] == [0, 0, 0, 1] and monitor.stopped


@pytest.mark.parametrize(("mode", "worse"), [("min", 2.5), ("max", 1.5)])
def test_a_metric_that_is_not_finite_is_never_the_best(mode, worse):
    monitor = RunMonitor(dataclasses.replace(ENABLED, patience=2), mode)
    infinite = -np.inf if mode == "min" else np.inf
    for value in (np.nan, 2.0, infinite):
        assert monitor.metric(value) == []
    (action,) = monitor.metric(worse)
    assert action.reason == "2 evaluations without a metric better than 2"
    # Without a single finite metric there is nothing to wait for either.
    lost = RunMonitor(dataclasses.replace(ENABLED, patience=2), mode)
    found = [lost.metric(np.nan) for _ in range(2)]
    assert found[0] == [] and "without a finite metric" in found[1][0].reason


def test_the_watchs_memory_is_json():
    import json

    monitor = RunMonitor(ENABLED, "min")
    for loss in (1.0, 9.0, 9.0, 1.0):
        monitor.record([loss])
    other = RunMonitor(ENABLED, "min")
    other.set_state(json.loads(json.dumps(monitor.get_state())))
    assert other.record([7.0]) == monitor.record([7.0]) != []
    assert other.get_state() == monitor.get_state()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spike": 1.0}, r"recovery.spike=1.0 must be above 1"),
        ({"shrink": 1.0}, r"recovery.shrink=1.0 must be between 0 and 1"),
        ({"window": 0}, r"recovery.window=0 must be at least 1"),
        ({"patience": -1}, r"recovery.patience=-1 must be at least 0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        RecoveryConfig(**changes)


def test_slow_steps_and_full_memory_are_told(tmp_path, caplog):
    resources = ResourceMonitor(RecoveryConfig(enabled=True, slow=2.0, window=2), 100)
    assert [resources.record(x, 50) for x in (1.0, 1.5, 1.0)] == [[], [], []]
    (told,) = resources.record(4.0, 50)
    assert told == "a step takes 4 s, 3.2 times the usual 1.25 s"
    assert resources.record(4.0, 96) == ["96 of 100 bytes are in use"]
    assert ResourceMonitor(RecoveryConfig(), 1).record(9.0, 9) == []
    with pytest.raises(ValueError, match=r"recovery.slow=0.5 must be 0 or above 1"):
        RecoveryConfig(slow=0.5)
    train(tmp_path / "run", LONG)
    records = read_records(tmp_path / "run" / "timing.jsonl")
    assert len(records) == 24 and all(r["step_seconds"] > 0 for r in records)
    total = sum(4 * r["step_seconds"] for r in records)
    assert total == pytest.approx(records[-1]["train_seconds"])
