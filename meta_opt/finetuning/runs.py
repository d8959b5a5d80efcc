"""Runs: `run` trains a workload, `finetune` a configuration from data to result."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from jax.sharding import Mesh

from meta_opt.finetuning.balancing import (
    BalancingConfig,
    balanced_objective,
    check_balancing,
)
from meta_opt.finetuning.energy import EnergyMeter
from meta_opt.finetuning.ledger import Amounts, Entry, Prices, add_to_file, measure
from meta_opt.finetuning.length import with_length
from meta_opt.finetuning.loop import RunResult, Trainer
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
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step_program import CompileStep, compile_step
from meta_opt.interruption import Interrupted, catch_signals
from meta_opt.meta_loss.settings import MetaLossConfig, read_meta_loss
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel import mesh as mesh_lib
from meta_opt.parallel.mesh import MeshConfig
from meta_opt.parallel.placement import to_host
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.text_files import write_json
from meta_opt.types import check_keys, from_config
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.workload import Workload, WorkloadConfig

_log = logging.getLogger(__name__)
W = TypeVar("W", bound=WorkloadConfig)


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
    take_over: bool = False,
    compile_with: CompileStep = compile_step,
    stop_when: Callable[[], bool] | None = None,
) -> RunResult:
    """Trains a workload, resuming from ``workdir`` if it holds a checkpoint.

    On the same topology an interrupted and resumed run has the same parameters and
    ``metrics.jsonl``, bit for bit, as an uninterrupted one. On SIGINT or SIGTERM the
    run finishes its step, saves, and raises
    :class:`meta_opt.interruption.Interrupted`; a second signal ends the
    process immediately. Several processes all call this with the same arguments; if one
    of them gets a signal, all stop after the same step.

    Args:
        workload: model, loss, data and evaluation.
        tx: the optimizer. It gets ``value=loss`` if it takes keyword arguments.
        config: the loop's settings: steps, batch size, seed, when to evaluate and save.
        meta_loss: how the workload's ``losses`` are combined; None for its own loss.
        balancing: how its modalities or ``losses`` are balanced; None: not at all.
        privacy: differentially private training; the workload's ``describe`` must then
            have the number of training examples. None for none.
        mesh: devices; default one device.
        workdir: for logs and checkpoints; None for neither.
        resolved_config: nested mapping that is written to ``config.json``; a resumed
            run must have the same, but for ``mesh`` and those of ``loop`` that do not
            alter the result (`LoopConfig.idle_settings`).
        label: text before the progress bar.
        take_over: whether the run may donate the workload's arrays, see `init_state`.
        compile_with: compiles the step, or returns an already compiled one.
        stop_when: called after every evaluation except the one before the first step;
            True stops the run. Its own state is not in checkpoints.

    Returns:
        The final state and measurements.

    Raises:
        Interrupted: on SIGINT or SIGTERM.
        ValueError: sizes do not fit the mesh; batches do not have ``batch_size`` rows;
            ``workdir`` has a run of another configuration, model or optimizer, or is in
            use by another run; the processes do not share ``workdir``; or settings that
            cannot be private in a private run.

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
        take_over=take_over,
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
    """The objective of a run's steps; see `run`."""
    if privacy is None:
        return balanced_objective(workload, meta_loss, balancing)
    check_balancing(balancing, meta_loss, privacy)
    check_private(workload, meta_loss, config)
    noise = noise_for(privacy, exposure_of(workload, config))
    return private_loss(workload.loss_fn, privacy.clip_norm, noise)


def exposure_of(workload: Workload, config: LoopConfig) -> Exposure:
    """How often a run uses its examples.

    Raises:
        ValueError: a workload that does not state its number of training examples.
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
    """Adds the privacy loss of the steps that were taken, with the run's noise."""
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
    assert workload.meta_batches is not None
    batch_size = meta_loss.batch_size or config.batch_size
    mesh_lib.check_batch_size(mesh, batch_size)
    rows = mesh_lib.local_rows(mesh, batch_size)
    open_batches = functools.partial(
        workload.meta_batches, batch_size, config.seed, rows
    )
    programs = make_meta_step(workload, objective, meta_loss, tx)
    return MetaSteps(
        programs, meta_loss.interval, open_batches, len(rows), batch_size, mesh
    )


def _validate(evaluate: Any, params: Any, frozen: Any) -> Mapping[str, float]:
    return evaluate(params, frozen, "validation")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The configuration of a run; each section is documented at its class.

    Attributes:
        workload: model and data, a `WorkloadConfig` such as
            `meta_opt.workloads.image_text.ImageTextConfig`.
        loop: length, and intervals of logging, evaluation and checkpoints.
        optimizer: the optimizer; its length is the loop's.
        meta_loss: how the workload's losses are combined; None for its own loss.
        balancing: how its modalities or losses are balanced; None: not at all.
        privacy: differentially private training; None for none.
        mesh: devices.
        export: path and format of the final weights.
        prices: of device hours, tokens and energy, for the ledger.
    """

    workload: Any
    loop: LoopConfig
    optimizer: OptimizerConfig
    meta_loss: MetaLossConfig | None = None
    balancing: BalancingConfig | None = None
    privacy: PrivacyConfig | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    prices: Prices = dataclasses.field(default_factory=Prices)

    def __post_init__(self) -> None:
        """Checks that loop and optimizer have the same length and metric."""
        check_balancing(self.balancing, self.meta_loss, self.privacy)
        schedule = self.optimizer.schedule
        if schedule.name == "plateau":
            if not self.loop.feedback:
                raise ValueError(
                    "optimizer.schedule.name='plateau' follows the validation metric: "
                    "set loop.feedback=True, and loop.best_metric to its name"
                )
            if schedule.mode != self.loop.best_mode:
                raise ValueError(
                    f"optimizer.schedule.mode={schedule.mode!r} and loop.best_mode="
                    f"{self.loop.best_mode!r} differ"
                )
        if self.loop.num_steps != self.optimizer.num_steps:
            raise ValueError(
                f"loop.num_steps={self.loop.num_steps} and optimizer.num_steps="
                f"{self.optimizer.num_steps} differ"
            )

    def with_length(self, examples: int, mesh: Mesh) -> "RunConfig":
        """Fills in number of steps and batch size where they are 0.

        See `meta_opt.finetuning.length.with_length`.
        """
        unit = mesh_lib.batch_shards(mesh) * self.loop.accumulation_steps
        loop = with_length(self.loop, examples, unit)
        optimizer = dataclasses.replace(self.optimizer, num_steps=loop.num_steps)
        return dataclasses.replace(self, loop=loop, optimizer=optimizer)

    def settings(self) -> dict[str, Any]:
        """All settings as one nested mapping, the workload's beside the run's."""
        nested = dataclasses.asdict(self)
        # Prices do not affect a run, and are in its ledger.
        del nested["prices"]
        return nested.pop("workload") | nested


def read_run_config(
    workload: type[W], settings: Mapping[str, Any], name: str = "config"
) -> RunConfig:
    """Builds the configuration of a run from one nested mapping.

    Args:
        workload: the dataclass of the workload; its fields are keys next to those of
            `RunConfig`.
        settings: such as a config file's: differences from the dataclasses' defaults,
            with ``num_steps``, ``batch_size`` and ``seed`` at the root.
        name: of the mapping, for errors.

    Raises:
        ValueError: an unknown key, named with the nearest known one, and as
            `from_config`.

    Example:
        >>> from meta_opt.workloads.image_text import ImageTextConfig
        >>> settings = {"num_steps": 10, "batch_size": 4, "loop": {"log_every": 5}}
        >>> config = read_run_config(ImageTextConfig, settings)
        >>> config.loop.num_steps, config.optimizer.num_steps, config.loop.log_every
        (10, 10, 5)
    """
    of_run = {field.name for field in dataclasses.fields(RunConfig)} - {"workload"}
    of_workload = {field.name for field in dataclasses.fields(workload)}  # type: ignore
    check_keys(name, settings, (*_AT_THE_ROOT, *sorted(of_run | of_workload)))
    for section in ("loop", "optimizer"):
        for key in set(_AT_THE_ROOT) & set(settings.get(section, {})):
            raise ValueError(f"{name}.{section}.{key}: give {name}.{key} instead")
    root = {key: settings[key] for key in _AT_THE_ROOT if key in settings}
    sections = {
        **settings,
        "loop": {**settings.get("loop", {}), **root},
        "optimizer": {
            **settings.get("optimizer", {}),
            "num_steps": root.get("num_steps", 0),
        },
    }
    made = from_config(
        workload, {k: sections[k] for k in of_workload & set(sections)}, name
    )
    if sections.get("meta_loss") is not None:
        meta_loss = read_meta_loss(sections["meta_loss"], f"{name}.meta_loss")
        sections["meta_loss"] = meta_loss
    of_classes = {"privacy": PrivacyConfig, "balancing": BalancingConfig}
    for section, made_of in of_classes.items():
        if isinstance(given := sections.get(section), Mapping):
            sections[section] = from_config(made_of, given, f"{name}.{section}")
    of_run_given = {k: sections[k] for k in of_run & set(sections)}
    return from_config(RunConfig, {"workload": made, **of_run_given}, name)


_AT_THE_ROOT = ("num_steps", "batch_size", "seed")
"""Settings that several sections of a run share."""


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
        """The counts among the facts about the data that are not 0, by name.

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
    exported again. Several processes call this with the same arguments; process 0
    writes the results.

    Args:
        config: the run; a number of steps or batch size of 0 is chosen by the number of
            examples.
        workdir: for logs, checkpoints, ``result.json`` and ``ledger.json``; None for
            none of them.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        ValueError: see `run` and the workload's ``build``.
        MissingDataError: data or weights that are not prepared.
    """
    with hold_workdir(workdir):
        return _finetune(config, workdir)


def _finetune(config: RunConfig, workdir: str | Path | None) -> FinishedRun:
    # What is quickly found to be wrong comes first; a large model takes minutes.
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
    # A finished run may be exported again in another format.
    del settings["export"]
    first = jax.process_index() == 0
    meter = EnergyMeter()

    def enter(kind: str, amounts: Amounts, count: int = 1) -> None:
        if workdir is not None and first:
            entry = Entry("run", kind, amounts, count)
            add_to_file(workdir, config.prices, [entry], meter.sources)

    try:
        with measure(mesh.size, meter) as training:
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
                take_over=True,
            )
    except Interrupted:
        enter("training", training.amounts)
        raise
    if result.steps_taken:
        # Before the test, which may be interrupted too.
        enter("training", training.amounts)
    trained = result.state.params, result.state.frozen
    with measure(mesh.size, meter) as predicting:
        test = {} if workload.evaluate is None else workload.evaluate(*trained, "test")
    finished = FinishedRun(result, dict(test), workload.describe())
    count = facts["examples"].get("test")
    if result.steps_taken and count:
        enter("prediction", predicting.amounts, count)
    if workdir is not None and first:
        path = Path(workdir) / "result.json"
        # If the run had finished before, the file has its times.
        if result.steps_taken or not path.is_file():
            _write_result(path, finished)
    if workload.write is not None:
        # A single process has whole arrays; several have a part each.
        whole = trained if jax.process_count() == 1 else to_host(trained)
        if first:
            workload.write(*whole)
    return finished


def _check_quickly(config: RunConfig, mesh: Mesh) -> None:
    """Raises for what can be checked before a large model is loaded for minutes."""
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
