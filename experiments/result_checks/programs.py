"""Checks of the results on compiled programs: operations and bytes."""

from pathlib import Path

from experiments.result_checks.stored import Settings, stored_file
from meta_opt.studies.reproduction.compare import Comparison, by_tolerance
from meta_opt.text_files import read_json
from meta_opt.types import check_keys, from_config

_HALF_A_DIGIT = 0.005 * 2**30
"""Rounding error in bytes of the tables of memory plans."""


def meltr_operations(settings: Settings) -> list[Comparison]:
    """Recounts the operations of each program of a traced cell."""
    from meta_opt.studies.meltr_throughput.cases import Case
    from meta_opt.studies.meltr_throughput.measure import measure

    check_keys("check", settings, ("file", "relative"))
    record = read_json(stored_file(Path(settings["file"])))
    case = from_config(Case, record["case"], settings["file"])
    if case.level != "traced":
        raise ValueError(f"{settings['file']}: level={case.level!r} must be 'traced'")
    found = measure(case, lambda runs, rounds: {})["programs"]
    return [
        by_tolerance(
            f"operations, {name}",
            stored["flops"],
            found[name]["flops"],
            relative=settings["relative"],
        )
        for name, stored in record["programs"].items()
    ]


def plan_bytes(settings: Settings) -> list[Comparison]:
    """Recomputes bytes of parameters and optimizer state per device of a plan.

    They follow from shapes and shardings, which are the same on as many CPU devices.
    The table has GiB with two decimals, so they must agree within half of the last one.
    """
    from experiments.plan_memory import abstract_training, subject
    from meta_opt.finetuning.planning import abstract_state, device_bytes

    check_keys("check", settings, ("plan", "file", "trainable"))
    plan = {**settings["plan"], "topology": ""}
    record = read_json(stored_file(Path(settings["file"])))
    _, rules, *_ = subject(plan)
    found = []
    for row in record["rows"]:
        if row["trainable"] != settings["trainable"]:
            continue
        model, tx, mesh = abstract_training(plan, row["trainable"], row["name"])
        state, _ = abstract_state(model.params, model.frozen, tx, mesh, rules)
        for what, tree in (
            ("parameters", state.params),
            ("optimizer", state.opt_state),
        ):
            found.append(
                by_tolerance(
                    f"{what} of a device (bytes), {row['name']}",
                    row[what],
                    device_bytes(tree),
                    absolute=_HALF_A_DIGIT,
                )
            )
    return found


def pruning_operations(settings: Settings) -> list[Comparison]:
    """Recounts tokens of a clip and operations of a gradient, without training.

    The models keep all or some of the visual tokens.
    """
    import tempfile

    from experiments.workloads import read_run
    from meta_opt.studies.token_pruning.measure import TokenPruningConfig, measure

    check_keys("check", settings, ("study", "kept_shares", "relative"))
    run = dict(settings["study"])
    results, _ = run.pop("results"), run.pop("study")
    record = read_json(stored_file(Path(results) / "token_pruning.json"))
    stored = {row["name"]: row for row in record["rows"]}
    config = TokenPruningConfig(kept_shares=tuple(settings["kept_shares"]), seeds=())
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(
            read_run(run),
            config,
            lambda calls, rounds: dict.fromkeys(calls, 0.0),
            Path(folder) / "finished.json",
        )
    return [
        by_tolerance(
            f"{what}, {row['name']}",
            stored[row["name"]][what],
            row[what],
            relative=settings["relative"],
        )
        for row in rows
        for what in ("tokens", "flops")
    ]
