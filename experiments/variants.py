"""Shared main function of commands that compare variants of a fine-tuning run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import cli


def compare_variants(
    name: str,
    settings: Mapping[str, Any],
    workdir: str | Path,
    study: type,
    measure: Callable[..., Iterable[Mapping[str, Any]]],
    write: Callable[[str, Sequence[Mapping[str, Any]], Mapping[str, Any]], str],
    facts: Callable[[Any, Any], Mapping[str, Any]],
) -> None:
    """Measures unfinished runs, then writes and prints the report.

    Args:
        name: name of the report's files, without suffix.
        settings: settings of the command: those of the run, ``study`` and ``results``.
        workdir: folder of the file of finished runs.
        study: dataclass of ``settings["study"]``.
        measure: function of run, study, ``finished`` and ``announce``, like
            `meta_opt.studies.balancing.measure.measure`; returns rows.
        write: function of folder, rows and facts; returns the table for a terminal.
        facts: function of run and study; returns facts for the report.

    Raises:
        ValueError: invalid settings.
    """
    from experiments.workloads import read_run
    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.types import from_config

    use_compilation_cache()
    of_run = dict(settings)
    results, of_study = of_run.pop("results"), of_run.pop("study")
    config = from_config(study, of_study, "config.study")
    run = read_run(of_run)
    measured = measure(
        run,
        config,
        finished=Path(workdir) / "finished.json",
        announce=lambda line: print(line, flush=True),
    )
    rows = list(measured)
    about = {
        **facts(run, config),
        "steps": run.loop.num_steps,
        "batch size": run.loop.batch_size,
    }
    about["seeds"] = config.seeds
    print(write(results, rows, cli.report_facts(settings, **about)))
    print(f"written: {results}/{name}.md, {name}.json")
