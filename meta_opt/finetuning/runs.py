"""Training runs: `run` trains a workload, `finetune` runs a whole configuration."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from meta_opt.finetuning.balancing import (
    BalancingConfig,
    balanced_objective,
    check_balancing,
)
from meta_opt.finetuning.energy import EnergyMeter
from meta_opt.finetuning.ledger import Amounts, Entry, add_to_file, measure
from meta_opt.finetuning.loop import Trainer
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.meta_step import MetaSteps, make_meta_step
from meta_opt.finetuning.modality_groups import with_groups
from meta_opt.finetuning.objective import Objective
from meta_opt.finetuning.privacy import PrivacyConfig, check_private, private_loss
from meta_opt.finetuning.privacy_accounting import (
    Exposure,
    load_accounting,
    noise_for,
    spent,
)
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.run_result import RunResult
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step_program import CompileStep, compile_step
from meta_opt.interruption import Interrupted, catch_signals
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.optimizers.registry import make_optimizer
from meta_opt.parallel import mesh as mesh_lib
from meta_opt.parallel.mesh import MeshConfig
from meta_opt.parallel.placement import to_host
from meta_opt.parallel.processes import mean
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.text_files import write_json
from meta_opt.workloads.workload import Batches, Workload

_log = logging.getLogger(__name__)


def run(
    workload: Workload,
    tx: optax.GradientTransformation,
    config: LoopConfig,
    *,
    meta_loss: MetaLossConfig | None = None,
    balancing: BalancingConfig | None = None,
    privacy: PrivacyConfig | None = None,
    mesh: MeshConfig | None = None,
    workdir: str | Path | None = None,
    resolved_config: Mapping[str, Any] | None = None,
    label: str = "",
    donate: bool = False,
    compile_with: CompileStep = compile_step,
    stop_when: Callable[[], bool] | None = None,
) -> RunResult:
    """Trains a workload, resuming from ``workdir`` if it holds a checkpoint.

    On the same topology an interrupted and resumed run has the same parameters and
    ``metrics.jsonl``, bit for bit, as an uninterrupted one. On SIGINT or SIGTERM the
    run finishes its step, saves, and raises :class:`meta_opt.interruption.Interrupted`;
    a second signal ends the process immediately. In multi-process runs all processes
    call this with the same arguments; if one of them gets a signal, all stop after the
    same step.

    Args:
        workload: model, loss, data and evaluation.
        tx: the optimizer, which gets ``value=loss`` if it takes keyword arguments.
        config: settings of the loop: steps, batch size, seed, when to evaluate and
            save.
        meta_loss: how the workload's ``losses`` are combined; None for its own loss.
        balancing: how its modalities or ``losses`` are balanced; None for no balancing.
        privacy: differentially private training, for which the workload's ``describe``
            must give the number of training examples; None for ordinary training.
        mesh: mesh of devices; None for a single device.
        workdir: folder for logs and checkpoints; None to write neither.
        resolved_config: nested mapping that is written to ``config.json``; a resumed
            run must have the same, except for ``mesh`` and those settings of ``loop``
            that do not affect the result (`LoopConfig.idle_settings`).
        label: text before the progress bar.
        donate: whether the run may donate the workload's arrays; see `init_state`.
        compile_with: compiles the step, or returns an already compiled one.
        stop_when: called after every evaluation except the one before the first step;
            True stops the run. Its own state is not in checkpoints.

    Returns:
        The final state and measurements.

    Raises:
        Interrupted: on SIGINT or SIGTERM.
        ValueError: sizes do not fit the mesh; batches do not have ``batch_size`` rows;
            ``workdir`` has a run of another configuration, model or optimizer, or is in
            use by another run; the processes do not share ``workdir``; or settings are
            incompatible with a private run.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax
        >>> from meta_opt.data.array_batches import array_batches
        >>> data = {"x": np.ones((8, 2), np.float32), "y": np.ones(8, np.float32)}
        >>> def loss_fn(params, frozen, batch, rng):
        ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), {}
        >>> workload = Workload(
        ...     params={"w": jnp.zeros(2)},
        ...     loss_fn=loss_fn,
        ...     train_batches=functools.partial(array_batches, data),
        ... )
        >>> result = run(workload, optax.sgd(0.1), LoopConfig(20, 4, progress=False))
        >>> int(result.state.step), result.history[-1]["train/loss"] < 1e-3
        (20, True)
    """
    device_mesh = mesh_lib.make_mesh(mesh or MeshConfig())
    if not config.num_steps:
        raise ValueError("num_steps=0: a run needs at least one step")
    mesh_lib.check_batch_size(device_mesh, config.batch_size, config.accumulation_steps)
    rows = mesh_lib.local_rows(device_mesh, config.batch_size)
    batches = workload.train_batches(config.batch_size, config.seed, rows)
    objective = run_objective(workload, config, meta_loss, privacy, balancing)
    state = init_state(
        workload.params,
        workload.frozen,
        tx,
        device_mesh,
        workload.rules,
        config.seed,
        donate=donate,
        init_objective=objective.init,
    )
    evaluate = workload.evaluate
    trainer = Trainer(
        config,
        state,
        device_mesh,
        functools.partial(compile_with, config, objective, tx),
        batches,
        evaluate and functools.partial(_validate, evaluate),
        workdir,
        _meta_steps(workload, objective, meta_loss, tx, config, device_mesh),
        stop_when,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_workdir(workdir))
        signals = stack.enter_context(catch_signals())
        stack.callback(trainer.close)
        trainer.open(resolved_config)
        trainer.train(signals, label)
    result = trainer.result()
    if privacy is None:
        return result
    return _with_privacy_loss(result, workload, config, privacy)


def run_objective(
    workload: Workload,
    config: LoopConfig,
    meta_loss: MetaLossConfig | None = None,
    privacy: PrivacyConfig | None = None,
    balancing: BalancingConfig | None = None,
) -> Objective:
    """Returns the objective of a run's steps; see `run`."""
    if privacy is None:
        return balanced_objective(workload, meta_loss, balancing)
    check_balancing(balancing, meta_loss, privacy)
    check_private(workload, meta_loss, config)
    noise = noise_for(privacy, exposure_of(workload, config))
    return private_loss(workload.loss_fn, privacy.clip_norm, noise)


def exposure_of(workload: Workload, config: LoopConfig) -> Exposure:
    """Returns how often a run uses its examples.

    Raises:
        ValueError: the workload does not state its number of training examples.
    """
    examples = workload.describe().get("examples", {}).get("train")
    if examples is None:
        raise ValueError(
            f"privacy: {workload.name or 'this workload'} does not say how many "
            "training examples it has; its describe() must give "
            "{'examples': {'train': N}}"
        )
    return Exposure(examples, config.batch_size, config.num_steps)


def _with_privacy_loss(
    result: RunResult, workload: Workload, config: LoopConfig, privacy: PrivacyConfig
) -> RunResult:
    """Adds the privacy loss of the steps that were taken, with the noise of the run."""
    noise = noise_for(privacy, exposure_of(workload, config))
    taken = dataclasses.replace(config, num_steps=int(result.state.step))
    figures = spent(privacy, exposure_of(workload, taken), noise)
    return dataclasses.replace(result, privacy=figures)


def _meta_steps(
    workload: Workload,
    objective: Objective,
    meta_loss: MetaLossConfig | None,
    tx: optax.GradientTransformation,
    config: LoopConfig,
    mesh: Mesh,
) -> MetaSteps | None:
    if objective.combiner is None or objective.combiner.training != "meta":
        return None
    assert meta_loss is not None and workload.losses is not None
    meta_batches = workload.meta_batches
    assert meta_batches is not None
    if meta_loss.interval > config.num_steps:
        _log.warning(
            "meta_loss.interval=%d is more than num_steps=%d: the combiner %r is never "
            "trained",
            *(meta_loss.interval, config.num_steps, meta_loss.combiner),
        )
    batch_size = meta_loss.batch_size or config.batch_size
    mesh_lib.check_batch_size(mesh, batch_size)
    rows = mesh_lib.local_rows(mesh, batch_size)

    def open_batches() -> Batches:
        try:
            return meta_batches(batch_size, config.seed, rows)
        except ValueError as error:
            raise ValueError(
                f"meta-validation data, meta_loss.batch_size={batch_size}: {error}"
            ) from None

    programs = make_meta_step(workload, objective, meta_loss, tx)
    return MetaSteps(
        programs, meta_loss.interval, open_batches, len(rows), batch_size, mesh
    )


def _validate(evaluate: Any, params: Any, frozen: Any) -> Mapping[str, float]:
    return evaluate(params, frozen, "validation")


class FinishedRun(NamedTuple):
    """A finished run of a configuration.

    Attributes:
        result: the run.
        test: metrics of the final parameters on the test split.
        data: facts about the data, such as files that could not be read.
    """

    result: RunResult
    test: dict[str, float]
    data: dict[str, Any]

    def counts(self) -> dict[str, int]:
        """Returns the nonzero counts among the facts about the data, by name.

        >>> FinishedRun(None, {}, {"missing": {"audio": 2, "text": 0}}).counts()
        {'missing, audio': 2}
        """
        return _counts(self.data)


def _counts(value: Any, *path: str) -> dict[str, int]:
    if isinstance(value, Mapping):
        parts = [_counts(x, *path, str(k)) for k, x in value.items()]
        return {name: count for part in parts for name, count in part.items()}
    return {", ".join(path): value} if isinstance(value, int) and value else {}


def finetune(config: RunConfig, workdir: str | Path | None = None) -> FinishedRun:
    """Builds a workload, trains, evaluates on the test split and exports.

    Resumes from a checkpoint in ``workdir``. A finished run is only evaluated and
    exported again. In multi-process runs all processes call this with the same
    arguments; process 0 writes the results.

    Args:
        config: configuration of the run; a number of steps or a batch size of 0 is
            chosen from the number of examples.
        workdir: folder for logs, checkpoints, ``result.json`` and ``ledger.json``; None
            to write none of them.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        ValueError: see `run` and the workload's ``build``.
        MissingDataError: data or weights are not prepared.
    """
    with hold_workdir(workdir):
        return _finetune(config, workdir)


def _finetune(config: RunConfig, workdir: str | Path | None) -> FinishedRun:
    # Quick checks first: loading a large model takes minutes.
    mesh = mesh_lib.make_mesh(config.mesh)
    _check_quickly(config, mesh)
    workload = config.workload.build(config.loop.seed, mesh, config.export)
    facts = workload.describe()
    config = config.with_length(facts["examples"]["train"], mesh)
    _log.info(
        "%d x %s; %s; %d steps of %d examples; results in %s",
        mesh.size,
        mesh.devices.flat[0].device_kind,
        ", ".join(f"{k} {n}" for k, n in _counts(facts).items()),
        config.loop.num_steps,
        config.loop.batch_size,
        workdir or "memory only",
    )
    settings = config.settings()
    # Not compared on resume: a finished run may be exported in another format.
    del settings["export"]
    first = jax.process_index() == 0
    meter = EnergyMeter()

    def enter(kind: str, amounts: Amounts, count: int = 1) -> None:
        amounts = _over_processes(amounts)
        if workdir is not None and first:
            entry = Entry("run", kind, amounts, count)
            add_to_file(workdir, config.prices, [entry], meter.sources)

    try:
        with measure(mesh.size, meter, tokens=workload.tokens) as training:
            result = run(
                workload,
                make_optimizer(with_groups(config.optimizer, workload)),
                config.loop,
                meta_loss=config.meta_loss,
                balancing=config.balancing,
                privacy=config.privacy,
                mesh=config.mesh,
                workdir=workdir,
                resolved_config=settings,
                label=config.optimizer.name,
                donate=True,
            )
    except Interrupted:
        enter("training", training.amounts)
        raise
    if result.steps_taken:
        # Written before the test, which may be interrupted too.
        enter("training", training.amounts)
    trained = result.state.params, result.state.frozen
    with measure(mesh.size, meter, tokens=workload.tokens) as predicting:
        test = {} if workload.evaluate is None else workload.evaluate(*trained, "test")
    finished = FinishedRun(result, dict(test), workload.describe())
    count = facts["examples"].get("test")
    if result.steps_taken and count:
        enter("prediction", predicting.amounts, count)
    if workdir is not None and first:
        path = Path(workdir) / "result.json"
        # Keep the file of a run that had already finished: it has its times.
        if result.steps_taken or not path.is_file():
            _write_result(path, finished)
    if workload.write is not None:
        # With several processes each has only a part of the arrays.
        whole = trained if jax.process_count() == 1 else to_host(trained)
        if first:
            workload.write(*whole)
    return finished


def _over_processes(amounts: Amounts) -> Amounts:
    """Returns amounts with the tokens of all processes; all of them must call this.

    See `meta_opt.workloads.counted_texts.counted_texts`.
    """
    if amounts.tokens_in is None or amounts.tokens_out is None:
        return amounts
    return dataclasses.replace(
        amounts, tokens_in=mean(amounts.tokens_in), tokens_out=mean(amounts.tokens_out)
    )


def _check_quickly(config: RunConfig, mesh: Mesh) -> None:
    """Checks what can be checked before a large model is loaded."""
    if config.loop.batch_size:
        mesh_lib.check_batch_size(
            mesh, config.loop.batch_size, config.loop.accumulation_steps
        )
    make_optimizer(config.with_length(1, mesh).optimizer)
    if config.privacy is not None:
        load_accounting()


def _write_result(path: Path, finished: FinishedRun) -> None:
    result = finished.result
    summary: dict[str, Any] = {
        "test": finished.test,
        "validation": result.last_evaluation,
        **result.figures(),
        **finished.data,
    }
    write_json(path, summary)
