"""The command ``meta-opt``: plan, fit, predict, evaluate and report.

meta-opt plan samples.jsonl
meta-opt fit samples.jsonl --out tuned
meta-opt predict tuned samples.jsonl
meta-opt evaluate tuned more.jsonl
meta-opt report tuned report.html
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meta_opt.error_messages import message_of
from meta_opt.predictor.presets import PRESETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; user errors are reported in one line.

    Args:
        arguments: command-line arguments; None for those in ``sys.argv``.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("meta_opt").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)
    # Imported here, so that --help does not wait for JAX.
    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.interruption import Interrupted

    use_compilation_cache()
    try:
        options.run(options)
    except Interrupted as interrupted:
        how = "; the same command resumes it" if options.workdir else ""
        about = f"stopped by {interrupted}{how}"
        print(f"meta-opt {options.command}: {about}", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        resumes = getattr(options, "workdir", None) is not None
        if (message := message_of(error, resumes)) is None:
            raise
        print(f"meta-opt {options.command}: {message}", file=sys.stderr)
        return 1
    return 0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, except None and empty ones, which help texts explain."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default == "":
            return action.help
        return super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meta-opt",
        description="Trains a model on your samples, with nothing to tune.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=_HelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    fit = add("fit", _fit, "Train on samples and write the predictor into a folder.")
    plan = add(
        "plan",
        _plan,
        "Print what fit would do and the memory it needs, without training.",
    )
    for command in (fit, plan):
        _add_choices(command)
    fit.add_argument(
        "--out",
        required=True,
        default=argparse.SUPPRESS,
        help="folder of the predictor",
    )
    fit.add_argument(
        "--time-limit",
        type=float,
        help="seconds for the whole call; no limit if omitted",
    )
    fit.add_argument(
        "--workdir",
        help="folder for logs and checkpoints, from which the same command resumes; "
        "neither is written if omitted",
    )
    _add_processes(fit)
    predict = add(
        "predict", _predict, "Print the prediction for each sample as a JSON line."
    )
    predict.add_argument("predictor", help="folder that fit wrote")
    predict.add_argument(
        "data", help="samples in the forms that fit takes; a target is ignored"
    )
    predict.add_argument(
        "--probabilities",
        action="store_true",
        help="also print the probability of each class",
    )
    evaluate = add("evaluate", _evaluate, "Print metrics on samples with targets.")
    evaluate.add_argument("predictor", help="folder that fit wrote")
    evaluate.add_argument("data", help="samples in the forms that fit takes")
    report = add(
        "report", _report, "Write a page about a predictor that opens offline."
    )
    report.add_argument("predictor", help="folder that fit wrote")
    report.add_argument("path", help="HTML file")
    for command in (predict, evaluate, report):
        command.add_argument(
            "--data-dir",
            default="",
            help="folder of pretrained encoders; $META_OPT_DATA_DIR or ./data if "
            "omitted",
        )
    return parser


def _add_processes(command: argparse.ArgumentParser) -> None:
    """Adds the arguments for running the command in several processes."""
    group = command.add_argument_group(
        "several processes",
        "Run the same command in each; not needed under SLURM, Open MPI and Cloud TPU.",
    )
    group.add_argument("--coordinator", default="", help="host:port of process 0")
    group.add_argument("--processes", type=int, help="total number of processes")
    group.add_argument("--process", type=int, help="index of this process, from 0")
    group.add_argument(
        *("--process-timeout", "--process_timeout"),
        type=float,
        default=100.0,
        help="seconds without a heartbeat after which a process counts as lost",
    )


def _add_choices(command: argparse.ArgumentParser) -> None:
    """Adds the arguments for data and for settings chosen by hand."""
    command.add_argument(
        "data",
        help="JSONL or CSV file, folder with a sub-folder for each class, or tar files",
    )
    command.add_argument("--target", help="column to predict; inferred if omitted")
    command.add_argument(
        "--validation",
        help="validation samples, which select the model; held out from the data if "
        "omitted",
    )
    command.add_argument(
        "--test",
        help="test samples, for the final metrics; held out from the data if omitted",
    )
    command.add_argument(
        "--model",
        help="CLIP, SigLIP or PaliGemma folder to fine-tune; the default encoders if "
        "omitted",
    )
    command.add_argument(
        "--preset", default="good", choices=list(PRESETS), help="training effort"
    )
    command.add_argument(
        "--devices",
        type=int,
        help="maximum number of devices for data parallelism; all accelerators, or one "
        "CPU, if omitted",
    )
    command.add_argument("--seed", type=int, default=0, help="random seed")
    command.add_argument(
        "--data-dir",
        default="",
        help="folder of pretrained encoders; $META_OPT_DATA_DIR or ./data if omitted",
    )


def _fit(options: argparse.Namespace) -> None:
    from meta_opt.parallel.joined import joined

    given = options.coordinator, options.processes, options.process
    handlers = logging.getLogger().handlers
    with joined(*given, options.process_timeout, handlers) as first:
        _fit_together(options, first)


def _fit_together(options: argparse.Namespace, first: bool) -> None:
    """Fits a model; of several processes only the first one writes and prints."""
    from meta_opt.predictor.fit import fit

    with _writable(Path(options.out)) if first else contextlib.nullcontext():
        predictor = fit(
            options.data,
            time_limit=options.time_limit,
            workdir=options.workdir,
            **_choices(options),
        )
        if not first:
            return
        predictor.save(options.out)
    for split, metrics in predictor.record.metrics.items():
        listed = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{split}: {listed}")
    print(f"written: {options.out}, with each choice and its reason in decisions.json")


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Creates the folder in advance, to fail early; removes it if the call fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # The folder is not empty.
                path.rmdir()
        raise


def _plan(options: argparse.Namespace) -> None:
    from meta_opt.predictor.outline import plan

    print(plan(options.data, **_choices(options)))


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that `_add_choices` added, without the data."""
    names = (
        *("target", "validation", "test", "model", "preset"),
        *("devices", "seed", "data_dir"),
    )
    return {name: getattr(options, name) for name in names}


def _loaded(options: argparse.Namespace) -> Any:
    from meta_opt.predictor.predictor import Predictor

    return Predictor.load(options.predictor, data_dir=options.data_dir)


def _predict(options: argparse.Namespace) -> None:
    predictor = _loaded(options)
    if options.probabilities:
        classes = predictor.classes.tolist()
        for row in predictor.predict_proba(options.data):
            best = classes[int(row.argmax())]
            named = dict(zip(map(str, classes), map(float, row), strict=True))
            print(json.dumps({"prediction": best, "probabilities": named}))
        return
    for value in predictor.predict(options.data).tolist():
        print(json.dumps({"prediction": value}))


def _evaluate(options: argparse.Namespace) -> None:
    print(json.dumps(_loaded(options).evaluate(options.data), indent=2))


def _report(options: argparse.Namespace) -> None:
    _loaded(options).report(options.path)
    print(f"written: {options.path}")


if __name__ == "__main__":
    sys.exit(main())
