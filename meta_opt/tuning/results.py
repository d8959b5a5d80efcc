"""What a search found, as a JSON file that is kept with the code."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meta_opt.provenance import provenance
from meta_opt.text_files import read_json, write_json
from meta_opt.tuning.study_setup import INTERRUPTED, PLACE

if TYPE_CHECKING:
    import optuna


def write_results(
    path: str | Path, study: "optuna.Study", about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the best settings, every trial and where they come from.

    Args:
        path: JSON file, written atomically.
        study: study with at least one complete trial.
        about: further entries, such as the command and the objective in words.

    Returns:
        What was written: ``about``, ``study``, ``setup`` (the space among it),
        ``digest``, ``environment``, ``best`` (number, value, params) and ``trials``
        (number, state, value, params, intermediate values by step, seconds, error).
    """
    best = study.best_trial
    record = {
        **about,
        "study": study.study_name,
        **study.user_attrs["setup"],
        **provenance(study.user_attrs["setup"]),
        "best": {"number": _place(best), "value": best.value, "params": best.params},
        "trials": describe_trials(study),
    }
    write_json(path, record)
    return record


def describe_search(record: Mapping[str, Any], objective: str) -> str:
    """What `write_results` wrote, for a terminal.

    Args:
        record: result of `write_results`.
        objective: name of the objective.

    >>> trials = [{"state": "complete"}, {"state": "pruned"}, {"state": "complete"}]
    >>> best = {"value": 0.5, "params": {"learning_rate": 0.001}}
    >>> record = {"study": "adamw", "best": best, "trials": trials}
    >>> print(describe_search(record, "validation loss"))
    adamw: 3 trials (2 complete, 1 pruned)
      validation loss 0.5000 with
        learning_rate = 0.001
    """
    states = [trial["state"] for trial in record["trials"]]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted({*states}))
    lines = [
        f"{record['study']}: {len(states)} trials ({counts})",
        f"  {objective} {record['best']['value']:.4f} with",
    ]
    for name, value in record["best"]["params"].items():
        lines.append(f"    {name} = {value:.4g}")
    return "\n".join(lines)


def describe_trials(study: "optuna.Study") -> list[dict[str, Any]]:
    """Returns the trials that were not interrupted, as JSON values in order.

    Their numbers are those of a search without interruption: a trial that repeats an
    interrupted one has its number.
    """
    cut_off = study.user_attrs.get(INTERRUPTED, [])
    return [
        {
            "number": _place(trial),
            "state": trial.state.name.lower(),
            "value": trial.value,
            "params": trial.params,
            "intermediate": trial.intermediate_values,
            **{k: v for k, v in trial.user_attrs.items() if k != PLACE},
        }
        for trial in sorted(study.trials, key=_place)
        if trial.state.is_finished() and trial.number not in cut_off
    ]


def _place(trial: "optuna.trial.FrozenTrial") -> int:
    """The place of a trial among those of a search without interruption."""
    return trial.user_attrs.get(PLACE, trial.number)


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`write_results` wrote.

    Raises:
        ValueError: if the file is missing or is not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no tuned setting at {path}; "
            "`python -m experiments.tune_baselines --config configs/tune.py:VARIANT` "
            "writes it"
        )
    try:
        record = read_json(path)
        if not isinstance(record["best"]["params"], dict):
            raise TypeError("`params` is not an object")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the result of a search: {error!r}") from None
    return record
