"""A trained model with everything needed to predict from a user's samples."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meta_opt.data.sources.sample_schema import Sample
from meta_opt.predictor.answers import Answer, softmax
from meta_opt.predictor.backend import BACKENDS, Backend
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision, read_decisions, write_decisions
from meta_opt.predictor.record import Record
from meta_opt.predictor.rows import class_value, to_samples
from meta_opt.predictor.table import Data, Table, read_table
from meta_opt.text_files import read_versioned, write_json
from meta_opt.types import check_name, from_config

_log = logging.getLogger(__name__)

_FORMAT = 1
FILE = "predictor.json"
"""Written last: a folder with this file has a complete predictor."""
_DECISIONS = "decisions.json"


class Predictor:
    """A trained model that predicts from samples; see `meta_opt.fit` and `load`.

    Args:
        backend: the trained model.
        columns: roles of the columns of the user's data.
        class_names: names of the K classes; empty for other tasks.
        decisions: chosen settings with reasons.
        record: record of the fit.

    Attributes:
        columns: roles of the columns.
        class_names: names of the K classes.
        decisions: chosen settings with reasons.
        record: record of the fit.
    """

    def __init__(
        self,
        backend: Backend,
        columns: Columns,
        class_names: Sequence[str],
        decisions: Sequence[Decision],
        record: Record,
    ) -> None:
        self._backend = backend
        self.columns = columns
        self.class_names = tuple(class_names)
        self.decisions = tuple(decisions)
        self.record = record

    @property
    def classes(self) -> np.ndarray:
        """The K classes as target values, in the order of `predict_proba`."""
        values = [class_value(name, self.columns.labels) for name in self.class_names]
        return np.asarray(values)

    def predict(self, samples: Data) -> np.ndarray:
        """Returns the prediction for each sample.

        Args:
            samples: B rows in any form that `meta_opt.fit` accepts; a target column is
                ignored. For a model with a single input column, also a list of its
                values.

        Returns:
            Array [B]: classes as values of the target, float32 scores, or strings. For
            retrieval int [B]: for each image, the row with the nearest text; -1 for
            rows without an image.

        Raises:
            ValueError: a sample without any input, a file that cannot be read, or no
                text to retrieve.
        """
        read = self._read(samples)
        outputs = self._backend.outputs(read, "")
        kind = self.columns.kind
        if kind == "classify":
            return self.classes[np.argmax(outputs, axis=-1)]
        if kind == "retrieve":
            pictures, texts = _sides(read)
            if not texts.any():
                raise ValueError(
                    "no row has a text to retrieve, in the columns "
                    f"{', '.join(self.columns.text)}"
                )
            similarity = outputs[:, 0] @ outputs[:, 1].T
            nearest = np.argmax(np.where(texts, similarity, -np.inf), axis=1)
            return np.where(pictures, nearest, -1)
        return outputs

    def predict_proba(self, samples: Data) -> np.ndarray:
        """Returns the probability of each of the `classes`.

        Args:
            samples: samples in any form that `predict` accepts.

        Returns:
            Probabilities, float [B, K]; rows sum to 1.

        Raises:
            ValueError: a model that is not a classifier; see also `predict`.
        """
        if self.columns.kind != "classify":
            raise ValueError(
                "only classifiers have probabilities; the task of this model is "
                f"{self.columns.kind!r}"
            )
        return softmax(self._backend.outputs(self._read(samples), ""))

    def embed(self, samples: Data) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Returns embeddings of samples.

        Args:
            samples: samples in any form that `predict` accepts.

        Returns:
            Fused features, float32 [B, D]. For retrieval, two arrays of unit vectors,
            of the images and of the texts; their dot products are similarities. The
            vector of a missing image or text is zero.

        Raises:
            ValueError: as for `predict`.
        """
        if self.columns.kind == "retrieve":
            read = self._read(samples)
            outputs = self._backend.outputs(read, "")
            pictures, texts = _sides(read)
            return outputs[:, 0] * pictures[:, None], outputs[:, 1] * texts[:, None]
        return np.asarray(
            self._backend.outputs(self._read(samples), "summary"), np.float32
        )

    def evaluate(self, data: Data) -> dict[str, float]:
        """Returns metrics on samples with targets.

        Args:
            data: samples in any form that `meta_opt.fit` accepts. Samples without a
                target, of an unknown class, or with an unreadable file are left out.

        Returns:
            The metrics of `meta_opt.evaluators.multimodal.multimodal_evaluation`, and
            the numbers of evaluated samples (``examples``) and of samples that were
            left out (``left_out``).

        Raises:
            ValueError: no sample can be evaluated, or a score is not a finite number.
        """
        table = read_table(data)
        self._check_columns(table, target=True)
        converted = to_samples(table, self.columns)
        known = [
            s
            for s in converted.samples
            if self.columns.kind != "classify" or s.fields.label in self.class_names
        ]
        found = self._backend.evaluate(known, table.name)
        if not found.examples:
            raise ValueError(
                f"{table.name}: none of {len(table.rows)} samples can be evaluated: "
                f"{len(table.rows) - len(converted.samples)} lack a target or input, "
                f"{len(converted.samples) - len(known)} are of unknown classes, "
                f"{len(known)} cannot be read"
            )
        return {
            **found.metrics,
            "examples": float(found.examples),
            "left_out": float(len(table.rows) - found.examples),
        }

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the predictor to a folder, for `load`.

        Frozen layers of encoders are not written; `load` reads them from the folder of
        encoders.
        """
        self._backend.save(Path(folder))
        write_decisions(Path(folder) / _DECISIONS, self.decisions)
        record = {
            field.name: getattr(self.record, field.name)
            for field in dataclasses.fields(Record)
        }
        record["answers"] = [one.to_json() for one in self.record.answers]
        about = {
            "format": _FORMAT,
            "backend": self._backend.name,
            "class_names": self.class_names,
            "columns": dataclasses.asdict(self.columns),
            "record": record,
        }
        write_json(Path(folder) / FILE, about)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, data_dir: str | os.PathLike = ""
    ) -> "Predictor":
        """Loads a predictor that `save` wrote.

        Args:
            folder: folder of the saved predictor.
            data_dir: folder of encoders, if it has moved.

        Raises:
            ValueError: no predictor in the folder, or damaged files.
            MissingDataError: encoders that are not prepared.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"{folder} has no predictor: {file} does not exist")
        about = read_versioned(file, _FORMAT)
        columns = from_config(Columns, about["columns"])
        check_name(f"{file}: backend", about["backend"], BACKENDS)
        made = BACKENDS[about["backend"]]
        backend = made.load(Path(folder), columns, os.fspath(data_dir))
        record = about["record"]
        record["answers"] = [Answer.from_json(x) for x in record["answers"]]
        decisions = read_decisions(Path(folder) / _DECISIONS)
        names = tuple(about["class_names"])
        return cls(backend, columns, names, decisions, Record(**record))

    def report(self, path: str | os.PathLike) -> None:
        """Writes one HTML page that opens offline; see `write_predictor_report`."""
        from meta_opt.predictor.report import write_predictor_report

        write_predictor_report(
            path, self.record, self.columns, self.class_names, self.decisions
        )

    def _read(self, data: Data) -> list[Sample]:
        table = read_table(self._with_names(data), "samples")
        self._check_columns(table, target=False)
        converted = to_samples(table, self.columns, target=False)
        if converted.without_input:
            there = set(converted.rows)
            first = next(i for i in range(len(table.rows)) if i not in there)
            raise ValueError(
                f"{table.rows[first].where}: nothing to read; the model reads "
                f"{_listed(self.columns)}"
            )
        return converted.samples

    def _with_names(self, data: Data) -> Data:
        """Converts a list of values of the only input column to rows."""
        if isinstance(data, str | os.PathLike) or not isinstance(data, Sequence):
            return data
        if not data or not all(isinstance(x, str | os.PathLike) for x in data):
            return data
        names = [*self.columns.media.values(), *self.columns.text]
        if len(names) != 1:
            raise ValueError(
                f"the model reads {_listed(self.columns)}: give dictionaries with "
                "these keys, not single values"
            )
        return [{names[0]: x} for x in data]

    def _check_columns(self, table: Table, target: bool) -> None:
        names = table.columns()
        needed = [*self.columns.media.values(), *self.columns.text]
        if not any(name in names for name in needed):
            raise ValueError(
                f"{table.name} has the columns {', '.join(names)}; the model reads "
                f"{_listed(self.columns)}"
            )
        if missing := [name for name in needed if name not in names]:
            # Samples may lack a file or a text, but the name may also be misspelt.
            _log.warning(
                "%s has no values in %s, which the model also reads (columns: %s)",
                table.name,
                ", ".join(map(repr, missing)),
                ", ".join(names),
            )
        if target and self.columns.target and self.columns.target not in names:
            raise ValueError(
                f"{table.name} has no column {self.columns.target!r}, the target, with "
                f"values (columns: {', '.join(names)})"
            )


def _sides(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which samples have an image, and which have a text; bool [B] each."""
    images = np.array([bool(sample.media) for sample in samples])
    return images, np.array([bool(sample.fields.reads) for sample in samples])


def _listed(columns: Columns) -> str:
    return ", ".join([*columns.media.values(), *columns.text])
