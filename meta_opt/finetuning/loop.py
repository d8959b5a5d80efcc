"""The fine-tuning loop: place, restore, step, evaluate, log, save, stop."""

import contextlib
import dataclasses
import datetime
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from meta_opt import run_log
from meta_opt.checkpoints import Checkpoints, Restored
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.meta_step import MetaSteps
from meta_opt.finetuning.planning import device_limit
from meta_opt.finetuning.recovery import Action, ResourceMonitor, RunMonitor
from meta_opt.finetuning.rollback import RollbackSnapshot
from meta_opt.finetuning.run_result import RunResult
from meta_opt.finetuning.state import TrainState, fingerprint
from meta_opt.finetuning.step_clock import StepClock
from meta_opt.interruption import Interrupted, Signals
from meta_opt.optimizers.decisions import read_decisions
from meta_opt.parallel import mesh as mesh_lib
from meta_opt.parallel.processes import LaggedMax, check_shared
from meta_opt.parallel.progress import note_progress
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Batches

_log = logging.getLogger(__name__)


class Trainer:
    """Executes a run: call ``open``, ``train`` and ``close`` in this order."""

    def __init__(
        self,
        config: LoopConfig,
        state: TrainState,
        mesh: jax.sharding.Mesh,
        compile_with: Callable[..., Any],
        batches: Batches,
        evaluate: Callable[[PyTree, PyTree], Mapping[str, float]] | None,
        workdir: str | Path | None,
        meta: MetaSteps | None = None,
        stop_when: Callable[[], bool] | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self.fingerprint = fingerprint(state.frozen)
        self.mesh = mesh
        self.rows = mesh_lib.local_rows(mesh, config.batch_size)
        self.compile_with = compile_with
        self.batches = batches
        self.evaluate = evaluate
        self.meta = meta
        self.stop_when = stop_when
        self.workdir = None if workdir is None else Path(workdir)
        self.log: Any = None
        self.checkpoints: Checkpoints | None = None
        self.step = 0
        self.steps_taken = 0
        self.pending: list[dict[str, Any]] = []  # metrics not in a record yet
        self.feedback = math.nan
        self.best: float | None = None  # best_metric, if this step was evaluated
        self.clock = StepClock()
        self._stopped = False
        self.monitor = RunMonitor(config.recovery, config.best_mode)
        self.resources = ResourceMonitor(
            config.recovery, device_limit(mesh.local_devices[0])
        )
        self.snapshot = RollbackSnapshot()

    @property
    def stopped(self) -> bool:
        """Whether the run stops before its last step."""
        return self._stopped or self.monitor.stopped

    def open(self, resolved_config: Mapping[str, Any] | None) -> None:
        """Restores the newest checkpoint, if any, and opens the log after its step."""
        resume_step = None
        if self.workdir is not None:
            check_shared(self.workdir)
            self.checkpoints = Checkpoints(
                self.workdir / "checkpoints",
                keep_latest=self.config.keep_latest,
                keep_best=self.config.keep_best,
                mode=self.config.best_mode,
            )
            if resolved_config is not None:
                run_log.write_config(
                    self.workdir,
                    resolved_config,
                    resuming=bool(self.checkpoints.steps()),
                    # Checkpoints can be restored with any sharding.
                    may_change=(
                        "mesh",
                        *(f"loop.{name}" for name in self.config.idle_settings),
                    ),
                )
            resume_step = self._restore(self.checkpoints)
            if jax.process_index() == 0:
                run_log.write_environment(self.workdir, self.step)
        self.log = run_log.RunLog(self.workdir, resume_step=resume_step)

    def _restore(self, checkpoints: Checkpoints) -> int | None:
        restored = checkpoints.restore(self.state.saved())
        if restored is None:
            return None
        if restored.step > self.config.num_steps:
            raise ValueError(
                f"{self.workdir} holds a checkpoint of step {restored.step}, beyond "
                f"num_steps={self.config.num_steps}; use another --workdir"
            )
        host = restored.host
        if host["frozen"] != self.fingerprint:
            raise ValueError(
                f"the run in {self.workdir} had other frozen parameters; start it "
                "from the same model, or use another --workdir"
            )
        initial = self.state
        self.state = dataclasses.replace(initial, **restored.state)
        self.batches.set_state(host["batches"])
        self.pending = host["pending"]
        self.feedback = math.nan if host["feedback"] is None else host["feedback"]
        self.clock.set_state(host)
        self.monitor.set_state(host["monitor"])
        if self.meta is not None:
            self.meta.set_state(host["meta"])
        self.step = restored.step
        if self.config.recovery.enabled:
            self.snapshot.keep(self._kept_before(checkpoints, restored, initial))
        _log.info("resuming %s from step %d", self.workdir, self.step)
        return self.step

    def _kept_before(
        self, checkpoints: Checkpoints, restored: Restored, initial: TrainState
    ) -> TrainState:
        """Returns the state that the run would roll back to without interruption.

        It is that of the last checkpoint at its interval after a good record, at first
        the initial one. The restored state may already be spoilt: it was saved at any
        step, on a signal.
        """
        every = self.config.checkpoint_every
        for step in reversed(checkpoints.steps()):
            if step > restored.step or step % every:
                continue
            found = restored
            if step != restored.step:
                found = checkpoints.restore(initial.saved(), step) or restored
            monitor = RunMonitor(self.config.recovery, self.config.best_mode)
            monitor.set_state(found.host["monitor"])
            if monitor.good:
                return dataclasses.replace(initial, **found.state)
        # Without the checkpoint, which may have been removed, the nearest there is.
        late = restored.step >= every and self.monitor.good
        return self.state if late else initial

    def train(self, signals: Signals, label: str) -> None:
        """Runs the remaining steps."""
        config = self.config
        if self.step == 0 and config.evaluates_first:
            self._evaluate()
        if self.step >= config.num_steps or self.stopped:
            return
        if not self.snapshot.kept:
            self._keep()
        note_progress(self.step, self.workdir)
        show = config.progress and jax.process_index() == 0
        bar = run_log.progress_bar(
            config.num_steps, start=self.step, label=label, show=show
        )
        agreed = LaggedMax(self.mesh)
        with contextlib.closing(bar):
            batch = self._next_batch()
            step_fn = self._compile(batch)
            self.clock.resume()
            while True:
                feedback = (np.float32(self.feedback),) if config.feedback else ()
                self.state, metrics = step_fn(self.state, batch, *feedback)
                self.step += 1
                self.steps_taken += 1
                if self.meta is not None:
                    self.state = self.meta.after(self.step, self.state)
                self.feedback = math.nan
                self.pending.append(metrics)
                self._after_step(bar)
                bar.update()
                last = self.step == config.num_steps or self.stopped
                if signum := agreed(signals.received or 0):
                    self._save()
                    raise Interrupted(signum, self.step)
                if last:
                    return
                self.clock.resume()
                batch = self._next_batch()

    def _after_step(self, bar: Any) -> None:
        """Logs, evaluates and saves if it is time to."""
        config, last = self.config, self.step == self.config.num_steps
        note_progress(self.step, self.workdir)
        self.best = None
        if self.step % config.record_every == 0 or last:
            loss = self._log_means()
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            if bar.disable and config.progress:
                self._log_progress(loss)
        if self.step % config.eval_every == 0 or last:
            self._evaluate()
        if self.step % config.checkpoint_every == 0 or last or self.stopped:
            self._save()
            self._keep()

    def _log_progress(self, loss: float) -> None:
        """Logs a line of progress, for output without a progress bar."""
        total = self.config.num_steps
        seconds = self.clock.train_seconds / self.step * (total - self.step)
        left = datetime.timedelta(seconds=round(seconds))
        _log.info("step %d of %d: loss %.4g, %s left", self.step, total, loss, left)

    def _compile(self, batch: PyTree) -> Callable[..., Any]:
        _log.info("compiling the step")
        with self.clock.compiling():
            compiled, actions = self.compile_with(self.state, batch, self.mesh)
            if self.meta is not None:
                self.meta.compile(self.state)
        _log.info("compiled in %.1f s", self.clock.compile_seconds)
        self._act(actions)
        return compiled

    def _next_batch(self) -> PyTree:
        """Takes a batch and shards it over the devices."""
        with self.clock.waiting_for_input():
            try:
                batch = next(self.batches)
            except StopIteration:
                raise ValueError(
                    f"the training data ended after {self.step} of "
                    f"{self.config.num_steps} steps; the iterator must repeat"
                ) from None
        size, rows = self.config.batch_size, len(self.rows)
        return mesh_lib.place_batch(self.mesh, batch, size, rows)

    def _fetch_pending(self) -> None:
        """Fetches the metrics since the last record to the host, as floats."""
        self.pending = [
            {key: float(value) for key, value in metrics.items()}
            for metrics in jax.device_get(self.pending)
        ]

    def _log_means(self) -> float:
        """Writes the means of the metrics since the last record; returns the loss."""
        self.clock.stop(self.state)
        self._fetch_pending()
        means = {
            f"train/{key}": math.fsum(m[key] for m in self.pending) / len(self.pending)
            if all(math.isfinite(m[key]) for m in self.pending)
            else math.nan
            for key in self.pending[0]
        }
        means["train/nonfinite"] = self.pending[-1]["nonfinite"]
        losses = [metrics["loss"] for metrics in self.pending]
        self.pending = []
        if self.meta is not None:
            means |= self.meta.means()
        decided = read_decisions(self.state.opt_state)
        means |= {f"optimizer/{name}": value for name, value in decided.items()}
        self.log.write(self.step, means)
        self._act(self.monitor.record(losses))
        self._log_resources(len(losses))
        return means["train/loss"]

    def _log_resources(self, steps: int) -> None:
        """Writes times and memory, and warns about unusual values."""
        timing = self.clock.timing(steps)
        device = self.mesh.local_devices[0]
        # None for devices that do not report memory, such as CPUs.
        in_use = (device.memory_stats() or {}).get("bytes_in_use")
        if in_use is not None:
            timing["bytes_in_use"] = in_use
        self.log.write_timing(self.step, timing)
        for what in self.resources.record(timing["step_seconds"], in_use):
            _log.warning("step %d: %s", self.step, what)

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        self.clock.stop(self.state)
        scores = dict(self.evaluate(self.state.params, self.state.frozen))
        self.log.write(self.step, {f"validation/{k}": v for k, v in scores.items()})
        if self.config.best_metric not in scores:
            raise ValueError(
                f"best_metric={self.config.best_metric!r} is not among the metrics of "
                f"the evaluation: {', '.join(scores)}"
            )
        self.best = self.feedback = float(scores[self.config.best_metric])
        self._act(self.monitor.metric(self.best))
        if self.step and self.stop_when is not None:
            self._stopped = self.stop_when()

    def _act(self, actions: Sequence[Action]) -> None:
        """Carries out the actions of automatic recovery, and logs them."""
        for action in actions:
            _log.warning("step %d, %s: %s", self.step, action.kind, action.reason)
            self.log.write_action(self.step, action.kind, action.reason)
            if action.kind == "roll back":
                self.state = self.snapshot.restored(self.state)
        if actions:
            scale = jax.device_put(
                np.float32(self.monitor.scale), self.state.scale.sharding
            )
            self.state = dataclasses.replace(self.state, scale=scale)

    def _keep(self) -> None:
        """Keeps the state for rollback, if it is healthy."""
        if self.config.recovery.enabled and self.monitor.good:
            self.snapshot.keep(self.state)

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        self.clock.stop(self.state)
        self._fetch_pending()
        self.checkpoints.save(
            self.step,
            self.state.saved(),
            {
                "batches": self.batches.get_state(),
                "pending": self.pending,
                "feedback": self.feedback if math.isfinite(self.feedback) else None,
                **self.clock.get_state(),
                "monitor": self.monitor.get_state(),
                "meta": None if self.meta is None else self.meta.get_state(),
                "frozen": self.fingerprint,
            },
            metric=self.best,
        )

    def close(self) -> None:
        """Waits for the last checkpoint and closes the files."""
        with contextlib.ExitStack() as stack:
            if self.log is not None:
                stack.callback(self.log.close)
            if self.checkpoints is not None:
                stack.callback(self.checkpoints.close)

    def result(self) -> RunResult:
        """Summarises the run."""
        return RunResult(
            state=self.state,
            history=self.log.history,
            actions=self.log.actions,
            train_seconds=self.clock.train_seconds,
            input_seconds=self.clock.input_seconds,
            compile_seconds=self.clock.compile_seconds,
            optimizer_bytes=sum(
                x.nbytes for x in jax.tree.leaves(self.state.opt_state)
            ),
            trainable=sum(x.size for x in jax.tree.leaves(self.state.params)),
            steps_taken=self.steps_taken,
            batch_size=self.config.batch_size,
        )
