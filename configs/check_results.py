"""One cell of each published table, to be measured again: ``published``, ``smoke``.

Each check names the code that measures it (``experiments/result_checks``) and the
tolerance of numbers without an interval over seeds. ``not_rerun`` lists published
results that take too long or have further requirements.
"""

import ml_collections

from configs import (
    ablations,
    balancing,
    calibrate,
    common,
    faults,
    framework,
    meta_evaluate,
    plan_memory,
    safeguard,
    style_choice,
    tables,
    token_pruning,
    tune,
)


def published() -> ml_collections.ConfigDict:
    """Seconds to a few minutes each."""
    config = ml_collections.ConfigDict()
    config.checks = _checks()
    config.not_rerun = {
        what: {"reason": reason, "command": command}
        for what, reason, command in _NOT_RERUN
    }
    # Folder of stored results; --records counts those that lack provenance.
    config.results = "results"
    return config


def _checks() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {**_of_optimizer(), **_of_programs(), **_of_finetuning()}
    )


def _of_optimizer() -> dict[str, dict]:
    """Meta-test, card, ablations, choice by styles, calibration, conditions."""
    checks = {}
    foreign, test = meta_evaluate.foreign(), meta_evaluate.test()
    for optimizer in (common.WEIGHTS, "hand_designed", "adamw"):
        checks[f"foreign/cars_regression/{optimizer}"] = _check(
            "meta_test_cell",
            suite=foreign,
            task="foreign_cars_regression",
            optimizer=optimizer,
        )
        checks[f"meta_test/tuxpaint_head/{optimizer}"] = _check(
            "meta_test_cell", suite=test, task="tuxpaint_head", optimizer=optimizer
        )
    checks["meta_validation/clipart_head/adamw"] = _check(
        "meta_test_cell",
        suite=meta_evaluate.validation(),
        task="clipart_head",
        optimizer="adamw",
    )
    checks[f"card/{common.WEIGHTS}/iris"] = _check(
        "card_value",
        suite=meta_evaluate.style_validation(),
        task="validation_iris_mlp",
        seeds=(1, 2),
        stored=ml_collections.ConfigDict(
            {common.WEIGHTS: 0.245, "hand_designed": 0.238}
        ),
        relative=0.02,
    )
    for name, row in (
        ("shipped", "as shipped"),
        ("hand-designed", "everything (the hand-designed rule)"),
    ):
        checks[f"ablations/clipart_head/{name}"] = _check(
            "ablation_row",
            study=ablations.shipped(),
            task="clipart_head",
            row=row,
            relative=0.02,
        )
    for name in ("hand-designed rule", "as shipped"):
        checks[f"style_choice/cancer_mlp/{name}"] = _check(
            "style_score",
            study=style_choice.shipped(),
            family="cancer_mlp",
            candidate=name,
            absolute=0.02,
        )
    checks["calibrated_baselines/cancer_mlp/adamw"] = _check(
        "calibration_setting",
        study=calibrate.families(),
        task="cancer_mlp",
        rival="adamw",
        learning_rate=3e-4,
        weight_decay=0.01,
        # Measured on a GPU.
        absolute=0.02,
    )
    checks["safeguard/digits_mlp"] = _check(
        "safeguard_cell",
        study=safeguard.robustness(),
        task="digits_mlp",
        conditions=("ordinary", "NaN in 5% of steps"),
    )
    return checks


def _of_programs() -> dict[str, dict]:
    """Operations and bytes of compiled programs."""
    checks = {}
    checks["meltr_throughput/losses_nano_1"] = _check(
        "meltr_operations",
        file="results/meltr_throughput/cells/losses_nano_1.json",
        relative=1e-6,
    )
    checks["plans/so400m_v5e_2x2"] = _check(
        "plan_bytes",
        devices=4,
        plan=plan_memory.so400m(),
        file="results/plans/so400m_v5e_2x2/memory_plan.json",
        trainable="all",
    )
    checks["token_pruning/univl"] = _check(
        "pruning_operations",
        study=token_pruning.univl(),
        kept_shares=(0.5,),
        relative=1e-6,
    )
    return checks


def _of_finetuning() -> dict[str, dict]:
    """Searches, tables, the framework, balancing and faults."""
    checks = {}
    checks["tuned/nano_clipart_adamw"] = _check(
        "tuned_trial", search=tune.nano_clipart_adamw(), relative=0.01
    )
    for optimizer in ("adamw", "learned"):
        checks[f"table1/emoji_sentiment/lora/{optimizer}"] = _check(
            "table_cell",
            table=tables.table1(),
            task="emoji_sentiment",
            variant="lora",
            optimizer=optimizer,
            relative=0.02,
            absolute=3.0,
        )
    checks["framework/emoji_sentiment/fit"] = _check(
        "framework_cell",
        study=framework.suite(),
        task="emoji_sentiment",
        stage="framework",
        seed=1,
        relative=0.05,
        absolute=3.0,
    )
    checks["balancing/clipart_category/none"] = _check(
        "balancing_row",
        study=balancing.task("clipart_category"),
        seed=1,
        relative=0.05,
        absolute=3.0,
    )
    checks["faults/kills/finetune_full"] = _check(
        "killed_run", study=faults.full(), cell="kills/finetune_full/0"
    )
    return checks


def _check(kind: str, devices: int = 1, **settings) -> dict:
    """A check, in a process with so many devices."""
    return {"kind": kind, "devices": devices, "settings": settings}


_NOT_RERUN = (
    (
        "table1, seconds and memory; Figures 2 and 3",
        "seconds are the machine's; the figures show the cells of table1",
        "make tables",
    ),
    (
        "meta_validation, learned optimizer (lstm-v1)",
        "the weights are no longer shipped",
        "python -m experiments.meta_evaluate "
        "--config configs/meta_evaluate.py:validation",
    ),
    (
        "ablations, other tasks",
        "a quarter of an hour; two rows of one task are checked",
        "python -m experiments.ablations --config configs/ablations.py:shipped",
    ),
    (
        "style_choice, other families",
        "an hour or two; two scores of one family are checked",
        "python -m experiments.style_choice --config configs/style_choice.py:shipped",
    ),
    (
        "faults, other cells",
        "up to minutes per cell; some mount file systems in memory and need root",
        "python -m experiments.faults --config configs/faults.py:full",
    ),
    (
        "framework, other tasks",
        "two to ten minutes per cell",
        "python -m experiments.framework --config configs/framework.py:suite",
    ),
    (
        "balancing, other variants",
        "ten minutes per task",
        "python -m experiments.balancing "
        "--config configs/balancing.py:tuxpaint_trimodal",
    ),
    (
        "meltr and meltr_all, the comparison of combiners",
        "five minutes to an hour per cell",
        "python -m experiments.reproduce_tables --config configs/tables.py:meltr",
    ),
    (
        "peers",
        "needs an environment with PyTorch and AutoGluon",
        "python -m experiments.compare_peers --config configs/peers.py:small",
    ),
    (
        "progressive",
        "needs a model whose pre-training takes an hour",
        "python -m experiments.progressive "
        "--config configs/progressive.py:openclipart_reduced --workdir runs/p",
    ),
    (
        "load",
        "memory and seconds are the machine's; tests hold what is kept",
        "python -m experiments.load --config configs/load.py:full",
    ),
    (
        "searches of tuned baselines",
        "20 trials each, hours; runs under their stored settings are checked",
        "python -m experiments.meta_evaluate --config configs/meta_evaluate.py:foreign",
    ),
    (
        "plans, peak of the compiled step",
        "needs libtpu (the extra `tpu`) and a minute per step",
        "python -m experiments.plan_memory --config configs/plan_memory.py:so400m",
    ),
    (
        "meltr_throughput, memory and milliseconds",
        "a minute per program to compile; milliseconds are the machine's",
        "python -m experiments.meltr_throughput "
        "--config configs/meltr_throughput.py:full",
    ),
    (
        "token_pruning, metrics and milliseconds",
        "150 steps of a video-text model; milliseconds are the machine's",
        "python -m experiments.token_pruning "
        "--config configs/token_pruning.py:all_in_one",
    ),
    (
        "quick start, table of the demo",
        "four to seven minutes, and no record is stored",
        "make demo",
    ),
    (
        "speed of updates and steps",
        "milliseconds are the machine's, and no record is stored",
        "make bench",
    ),
)


def smoke() -> ml_collections.ConfigDict:
    """Two checks that need neither prepared data nor training."""
    config = published()
    for name in list(config.checks):
        if not name.startswith(("meltr_throughput", "plans")):
            del config.checks[name]
    return config


get_config = common.variants(published, smoke)
