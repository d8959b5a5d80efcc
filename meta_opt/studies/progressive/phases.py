"""Fine-tuning in phases on few examples (Roumeliotis et al. 2025, IEEE Access).

A model is evaluated zero-shot and then fine-tuned on one phase of the data after
another. Each phase is a run of `meta_opt.finetuning.runs.finetune` in its own folder;
finished phases are not repeated. Layout of a study's folder::

    zero_shot/                 the model before fine-tuning
    learned/phase_1/           one folder for each track and phase
        phase.json             settings, digests, metrics and costs; written last
        weights.safetensors    trained parameters in full precision
        predictions_test.jsonl, predictions_validation.jsonl
        metrics.jsonl ...      other files of the run
    learned_dynamic/           track of an optimizer with a policy
        stopped.json           reason for which the policy ran no further phase

A track is an optimizer, either with fixed phases or with phases chosen by a policy.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meta_opt.data.sources.few_shot.stored import StoredFewShot, open_few_shot
from meta_opt.data.token_counts import TokenCounter
from meta_opt.finetuning.energy import EnergyMeter
from meta_opt.finetuning.ledger import LEDGER, measure, read_ledger
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import FinishedRun, finetune
from meta_opt.optimizers.weights import weights_digest
from meta_opt.parallel.mesh import check_batch_size, make_mesh
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.provenance import provenance
from meta_opt.run_log import changed_settings
from meta_opt.studies.progressive.policy import PhaseOutcome
from meta_opt.studies.progressive.predictions import (
    Examples,
    Predictions,
    answers_to,
    needed_lengths,
    read_examples,
    scores_of,
)
from meta_opt.studies.progressive.study import ZERO_SHOT, Study
from meta_opt.text_files import plain_json, read_json, write_json
from meta_opt.workloads.continued import ContinuedConfig, save_params
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text_model import build_model, model_structure
from meta_opt.workloads.image_text_preprocessing import Preprocessing

SPLITS = ("validation", "test")
RECORD = "phase.json"
STOPPED = "stopped.json"
_WEIGHTS = "weights.safetensors"


class Phases:
    """Runs the phases of a study.

    Args:
        study: settings of the study.
        workdir: folder of the study.

    Attributes:
        data: few-shot data.
        count: maximum number of phases of a track.

    Raises:
        FileNotFoundError: missing data; the message has the command that writes them.
        ValueError: more phases than the data have, a batch size above the number of
            examples of a phase, or a missing tokenizer.
    """

    def __init__(self, study: Study, workdir: str | Path) -> None:
        self.study, self.workdir = study, Path(workdir)
        config = study.config
        widths = {w for policy in study.policies.values() for w in policy.widths}
        self._at_width: dict[int, StoredFewShot] = {
            width: open_few_shot(config.folder, width, config.variant)
            for width in sorted({config.width, *widths})
        }
        self.data = self._at_width[config.width]
        self.count = config.phases or self.data.phases
        if self.count > self.data.phases:
            raise ValueError(
                f"study.phases={self.count}: {config.folder} has {self.data.phases}"
            )
        # Check all files before hours of training.
        for phase in range(1, self.count + 1):
            for width in self._at_width:
                self._count_examples(phase, self._train_file(phase, width))
        self._held_out = {split: self.data.held_out(split) for split in SPLITS}
        workload = study.run.workload
        prompt, answer = needed_lengths(
            [self._train_file(1, config.width), *self._held_out.values()],
            self.data.classes,
            workload.preprocessing(),
        )
        allowed = config.answer_tokens or 2 * answer
        if allowed < answer:
            raise ValueError(
                f"study.answer_tokens={allowed}: the longest right answer has {answer}"
            )
        self._workload = dataclasses.replace(
            workload,
            pipeline=dataclasses.replace(
                workload.pipeline, prompt_length=prompt, text_length=allowed
            ),
        )

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of inputs, without truncation of prompts and answers."""
        return self._workload.preprocessing()

    @functools.cached_property
    def _examples(self) -> dict[str, Examples]:
        return {
            split: read_examples(path, self.data.classes, self.preprocessing)
            for split, path in self._held_out.items()
        }

    def folder(self, track: str, phase: int) -> Path:
        """Returns the folder of a phase; all tracks share phase 0, zero-shot."""
        if phase == 0:
            return self.workdir / ZERO_SHOT
        return self.workdir / track / f"phase_{phase}"

    def check(self) -> None:
        """Checks that finished phases have the settings that a report states.

        Raises:
            ValueError: a finished phase has other settings or data.
        """
        if self._finished(self.folder("", 0), self._zero_shot_setup()) is None:
            return
        for name, (_, policy) in self.study.tracks().items():
            start, width = ("", ""), self.study.config.width
            for phase in range(1, self.count + 1):
                folder = self.folder(name, phase)
                if not (folder / RECORD).is_file():
                    break
                if policy is not None:
                    width = read_json(folder / RECORD).get("width", width)
                    if width not in self._at_width:
                        raise ValueError(
                            f"{folder} holds a phase with {width} pixels, which is not "
                            "among the policy's widths; restore them, or use another "
                            "--workdir"
                        )
                train = self._train_file(phase, width)
                run = self._config(name, phase, start, train)
                setup = self._setup(run, train, start[1], width)
                digest = self._finished(folder, setup)
                assert digest is not None
                start = self._next_start(name, phase, digest)

    def run(self, announce: Callable[[str], None] = lambda name: None) -> None:
        """Runs unfinished phases sequentially.

        Args:
            announce: called with the name of each phase, finished or not, in order.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after saving.
            ValueError: a finished phase has other settings or data, another process is
                running the study, or the mesh or the micro-batches do not divide the
                batch size.
        """
        run = self.study.run
        check_batch_size(
            make_mesh(run.mesh), run.loop.batch_size, run.loop.accumulation_steps
        )
        with hold_workdir(self.workdir):
            self._run(announce)

    def _run(self, announce: Callable[[str], None]) -> None:
        announce(ZERO_SHOT.replace("_", "-"))
        self._zero_shot()
        for name, (_, policy) in self.study.tracks().items():
            start: tuple[str, str] = ("", "")
            width, reason = self.study.config.width, ""
            stopped = self.workdir / name / STOPPED
            stopped.unlink(missing_ok=True)
            for phase in range(1, self.count + 1):
                if policy is not None:
                    decision = policy.decide(
                        self._outcomes(name, phase - 1),
                        width,
                        _count_lines(self.data.train(phase)),
                    )
                    width, reason = decision.width, decision.reason
                    if not decision.run:
                        write_json(stopped, {"after": phase - 1, "reason": reason})
                        break
                announce(f"{name}, phase {phase}")
                digest = self._phase(name, phase, start, width, reason)
                start = self._next_start(name, phase, digest)

    def _next_start(self, track: str, phase: int, digest: str) -> tuple[str, str]:
        """Returns the weights that the next phase starts from, and their digest."""
        if self.study.config.mode != "continue":
            return "", ""
        return str(self.folder(track, phase) / _WEIGHTS), digest

    def _outcomes(self, track: str, last: int) -> list[PhaseOutcome]:
        """Returns the outcomes of zero-shot and of finished phases up to ``last``."""
        found = []
        for phase in range(last + 1):
            folder = self.folder(track, phase)
            record = read_json(folder / RECORD)
            money = None
            if (folder / LEDGER).is_file():
                # Use the current prices in place of those at the time of the run.
                ledger = dataclasses.replace(
                    read_ledger(folder), prices=self.study.run.prices
                )
                money = ledger.money()
            accuracy = record["metrics"]["validation"]["answers"]["accuracy"]
            found.append(PhaseOutcome(accuracy, record.get("width"), money))
        return found

    def _train_file(self, phase: int, width: int) -> Path:
        cumulative = self.study.config.mode == "cumulative"
        return self._at_width[width].train(phase, cumulative)

    def _count_examples(self, phase: int, train: Path) -> int:
        """Returns the number of a phase's examples; raises if it is below a batch."""
        examples, size = _count_lines(train), self.study.run.loop.batch_size
        if examples < size:
            raise ValueError(
                f"batch_size={size}: phase {phase} has {examples} examples; lower "
                "batch_size"
            )
        return examples

    def _setup(
        self, run: RunConfig, train: Path | None, start: str, width: int
    ) -> dict[str, Any]:
        """Returns everything that a phase's outcome depends on, as JSON values.

        Paths are left out.
        """
        settings = run.settings()
        # Remove paths (files are identified by digests) and settings without effect.
        workload = settings.pop("workload")
        for name in ("name", "validation", "test", "data_dir", "max_unreadable"):
            del workload["data"][name]
        del workload["pipeline"]["num_threads"]
        for name in ("start", "start_sha256", "export", "mesh"):
            settings.pop(name, None)
        for name in run.loop.idle_settings:
            del settings["loop"][name]
        files = {"train": train} if train else {}
        setup = {
            **workload,
            **settings,
            "start": start,
            "width": width,
            "files": {
                split: self.data.digest(path)
                for split, path in {**files, **self._held_out}.items()
            },
        }
        if train is None:
            del setup["optimizer"], setup["loop"]
        elif run.optimizer.name == "learned":
            setup["learned"] = weights_digest(run.optimizer.weights)
        return plain_json(setup)

    def _finished(self, folder: Path, setup: Mapping[str, Any]) -> str | None:
        """Returns the digest of a finished phase's weights; None if unfinished."""
        path = folder / RECORD
        if not path.is_file():
            return None
        record = read_json(path)
        if not {"setup", "weights"} <= record.keys():
            raise ValueError(
                f"{path} is not the record of a phase; remove {folder} to rerun it"
            )
        if "width" not in record["setup"]:
            raise ValueError(
                f"{path} was written by an earlier version, which did not record the "
                "width of images; use another --workdir"
            )
        if changed := changed_settings(record["setup"], setup):
            raise ValueError(
                f"{folder} holds a phase with other settings or data "
                f"({'; '.join(changed)}); restore these settings to resume, or use "
                "another --workdir"
            )
        return record["weights"]

    def _config(
        self, track: str, phase: int, start: tuple[str, str], train: Path
    ) -> RunConfig:
        config, run = self.study.config, self.study.run
        optimizer, _ = self.study.tracks()[track]
        # An epoch leaves out an incomplete last batch.
        per_epoch = self._count_examples(phase, train) // run.loop.batch_size
        steps = config.epochs * per_epoch
        data = dataclasses.replace(
            self._workload.data,
            name=str(train),
            **{split: str(path) for split, path in self._held_out.items()},
        )
        export = ExportConfig()
        if config.export:
            path = str(self.folder(track, phase) / "model")
            export = ExportConfig(path, config.export)
        return dataclasses.replace(
            run,
            workload=ContinuedConfig(
                dataclasses.replace(self._workload, data=data), *start
            ),
            loop=dataclasses.replace(run.loop, num_steps=steps, eval_every=per_epoch),
            optimizer=dataclasses.replace(
                self.study.optimizers[optimizer], num_steps=steps
            ),
            export=export,
        )

    def _phase(
        self, track: str, phase: int, start: tuple[str, str], width: int, reason: str
    ) -> str:
        """Runs a phase unless it is finished; returns the digest of its weights."""
        folder = self.folder(track, phase)
        train = self._train_file(phase, width)
        run = self._config(track, phase, start, train)
        setup = self._setup(run, train, start[1], width)
        digest = self._finished(folder, setup)
        if digest is None:
            if start[0] and not Path(start[0]).is_file():
                raise ValueError(
                    f"phase {phase} starts from {start[0]}, which does not exist; "
                    f"restore it, or remove {Path(start[0]).parent} to rerun that phase"
                )
            finished = finetune(run, folder)
            state = finished.result.state
            digest = save_params(folder / _WEIGHTS, state.params)
            model = model_structure(self._workload.model, self.preprocessing)
            found = self._predict(folder, model.merge(state.params, state.frozen))
            found |= {"width": width, "reason": reason}
            self._write(folder, setup, digest, {**_figures(finished), **found})
        # The weights have been saved separately, so checkpoints are not needed.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return digest

    def _zero_shot_setup(self) -> dict[str, Any]:
        workload = ContinuedConfig(self._workload)
        run = dataclasses.replace(self.study.run, workload=workload)
        return self._setup(run, None, "", self.study.config.width)

    def _zero_shot(self) -> None:
        folder, run = self.folder("", 0), self.study.run
        setup = self._zero_shot_setup()
        if self._finished(folder, setup) is not None:
            return
        seed, mesh = run.loop.seed, make_mesh(run.mesh)
        module = build_model(self._workload.model, self.preprocessing, mesh, seed)
        model = module.merge(module.params, module.frozen)
        self._write(folder, setup, "", self._predict(folder, model))

    def _predict(self, folder: Path, model: Any) -> dict[str, Any]:
        """Writes predictions; returns metrics by split and the cost of inference.

        The cost is measured on the test split, when everything is already compiled.
        """
        size = self._workload.data.eval_batch_size
        meter, tokens = EnergyMeter(), TokenCounter()
        devices = make_mesh(self.study.run.mesh).size
        found: dict[str, Any] = {"metrics": {}}
        for split, examples in self._examples.items():
            with measure(devices, meter, tokens=tokens) as measured:
                written = answers_to(model, examples, self.preprocessing, size, tokens)
            scores = scores_of(model, examples, self.preprocessing, size)
            predictions = Predictions(examples, written, scores)
            predictions.write(folder / f"predictions_{split}.jsonl")
            found["metrics"][split] = predictions.metrics()
            if split == "test":
                amounts = measured.amounts.known()
                found["prediction"] = {"count": len(written), "amounts": amounts}
        return found

    def _write(
        self,
        folder: Path,
        setup: Mapping[str, Any],
        digest: str,
        found: Mapping[str, Any],
    ) -> None:
        counts = {split: len(x.labels) for split, x in self._examples.items()}
        record = {"setup": setup, "weights": digest, "examples": counts, **found}
        record |= provenance(setup)
        # Written last: this file marks the phase as finished.
        write_json(folder / RECORD, record)


def _count_lines(path: Path) -> int:
    return sum(map(bool, map(bytes.strip, path.read_bytes().splitlines())))


def _figures(finished: FinishedRun) -> dict[str, Any]:
    """Returns the measurements of a phase's run as JSON values."""
    history = finished.result.history

    def curve(name: str) -> list[list[float]]:
        return [[r["step"], r[name]] for r in history if name in r]

    return {
        "steps": int(finished.result.state.step),
        "train_loss": curve("train/loss"),
        "validation_loss": curve("validation/loss"),
        **finished.result.figures(),
    }
