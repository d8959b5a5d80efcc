"""Training, validation and test data of vision-text models."""

import collections
import dataclasses
import functools
import logging
import zlib
from collections.abc import Callable
from typing import Any

from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.pictures import (
    Pictures,
    Rows,
    Unreadable,
    hold_out,
    sample,
)
from meta_opt.data.records import MemorySource, Source
from meta_opt.data.same_data import check_same_data
from meta_opt.data.sources.clipart import bundled_clipart
from meta_opt.data.sources.image_text_rows import ImageTextRows
from meta_opt.data.sources.jsonl_samples import is_path
from meta_opt.data.sources.tfds_captions import TfdsCaptions, tfds_splits
from meta_opt.data.sources.tfds_sources import tfds_source
from meta_opt.types import check_least, check_name
from meta_opt.workloads.workload import Batches

_log = logging.getLogger(__name__)
DRAWINGS = ("clipart", "openclipart", "emoji")
"""Sources of this package, which have classes and splits."""

_TFDS = "tfds:"
_HELD_OUT = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and captions.

    Validation and test data are, in order of precedence: the named files; a TFDS
    dataset's splits of that name; the samples with that ``split``, and a share of the
    samples without a split. The share is chosen by a hash of each image's path, so that
    it is always the same images and none of them is trained on.

    Attributes:
        name: ``clipart`` (the bundled shard), ``openclipart`` or ``emoji`` (which
            ``make data`` prepares), a path as `ImageTextRows` takes it (JSONL,
            WebDataset), or ``tfds:NAME`` of a dataset prepared in ``data_dir``.
        validation: path of validation data; "" for the dataset's own split or a hash.
        test: path of test data; "" for the dataset's own split or a hash.
        held_out: share of the training data held out by hash, for each of validation
            and test, if neither a path nor a split is given.
        max_evaluated: maximum number of evaluated pairs per split of the user's data,
            which are kept in memory with 3 bytes per pixel. If there are more, a hash
            chooses among them.
        max_unreadable: number of the user's images that may be skipped as unreadable.
        eval_batch_size: number of pairs per evaluation batch, which are contrasted in
            the loss.
        artists: for ``emoji``, artists whose drawings are used; empty for all.
        captions: for ``openclipart`` and ``emoji``: ``name``, or ``name_tags`` for
            several captions per record.
        prompt: default prompt of a generative model, for images without a ``prompt``.
        data_dir: folder of prepared datasets; "" for the default folder.
    """

    name: str = "clipart"
    validation: str = ""
    test: str = ""
    held_out: float = 0.1
    max_evaluated: int = 1000
    max_unreadable: int = 100
    eval_batch_size: int = 256
    artists: tuple[str, ...] = ()
    captions: str = "name"
    prompt: str = ""
    data_dir: str = ""

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        own = self.name.startswith(_TFDS) or is_path(self.name)
        if not own:
            check_name("data.name", self.name, (*DRAWINGS, "FILE.jsonl", "tfds:NAME"))
        for split in _HELD_OUT:
            path = getattr(self, split)
            if path and not own:
                raise ValueError(
                    f"data.{split}={path!r}: {self.name} has splits of its own"
                )
            if path and path.startswith(_TFDS):
                raise ValueError(
                    f"data.{split}={path!r} must be a path; of a TFDS dataset the "
                    "splits of that name are taken"
                )
        if not 0 <= self.held_out < 0.5:
            raise ValueError(
                f"data.held_out={self.held_out} must be at least 0 and below 0.5: it "
                "is taken twice, for validation and test"
            )
        check_least("data", self, max_evaluated=1, max_unreadable=0, eval_batch_size=1)


class Splits:
    """Training, validation and test data, each opened on first use.

    Args:
        config: which data.
        fit: scales images to the model's input. (The drawings of this package are
            padded to its size.)

    Attributes:
        unreadable: counter of the images skipped so far.

    Raises:
        ValueError: unknown names, damaged files, or empty splits.
        MissingDataError: the dataset is not prepared; the message has the command.
    """

    def __init__(self, config: DataConfig, fit: ImageFit) -> None:
        self._config, self._fit = config, fit
        self.unreadable = Unreadable(config.max_unreadable)
        self._parts: dict[str, tuple[Rows, list[int]]] = {}
        if config.name not in DRAWINGS:
            self._parts = _parts(config)

    def train(self) -> Source:
        """Returns the training data; the user's images are read one by one."""
        if self._config.name in DRAWINGS:
            return self._drawings("train")
        rows, part = self._parts["train"]
        return Pictures(rows, self._fit, self.unreadable, part)

    def warn_of_repeated_captions(self) -> None:
        """Logs how many of the user's training captions are repeated.

        A contrastive loss treats images with the same caption as negatives.
        """
        rows, part = self._parts.get("train", (None, []))
        if not isinstance(rows, ImageTextRows):
            return
        counts = collections.Counter(rows.captions[i][0] for i in part)
        if repeated := sum(n for n in counts.values() if n > 1):
            caption, most = counts.most_common(1)[0]
            _log.warning(
                "%d of %d training images share their caption with another (%d have "
                "%r): a contrastive loss treats them as negatives; give captions that "
                "tell them apart, or labels to classify by",
                *(repeated, len(part), most, caption),
            )

    def held_out(self, split: str) -> MemorySource:
        """Returns the ``validation`` or ``test`` data, in memory."""
        if self._config.name in DRAWINGS:
            return self._drawings(split)
        rows, part = self._parts[split]
        chosen = sample(rows, part, self._config.max_evaluated)
        return Pictures(rows, self._fit, self.unreadable, chosen).in_memory()

    def digest(self) -> int:
        """Returns a checksum of the user's samples and file sizes; 0 for other data."""
        every = {id(rows): rows for rows, _ in self._parts.values()}
        found = [r.digest() for r in every.values() if isinstance(r, ImageTextRows)]
        return zlib.crc32(repr(found).encode()) if found else 0

    def _drawings(self, split: str) -> MemorySource:
        config, size = self._config, self._fit.size
        if config.name == "clipart":
            return bundled_clipart(split).resized(size)
        return tfds_source(
            config.name,
            split,
            config.data_dir or None,
            artists=config.artists or None,
            captions=config.captions,
            image_size=size,
        )


def _parts(config: DataConfig) -> dict[str, tuple[Rows, list[int]]]:
    """Returns for each split its rows and the indices that belong to it."""
    given: dict[str, Rows] = {
        split: ImageTextRows(path)
        for split in _HELD_OUT
        if (path := getattr(config, split))
    }
    rows: Rows
    if config.name.startswith(_TFDS):
        name, folder = config.name.removeprefix(_TFDS), config.data_dir or None
        rows = TfdsCaptions(name, "train", folder)
        for split in set(_HELD_OUT) & set(tfds_splits(name, folder)) - set(given):
            given[split] = TfdsCaptions(name, split, folder)
    else:
        rows = ImageTextRows(config.name)
    shares = {split: config.held_out for split in _HELD_OUT if split not in given}
    parts: dict[str, tuple[Rows, list[int]]] = {
        split: (rows, part) for split, part in hold_out(rows, shares).items()
    }
    parts |= {split: (r, list(range(len(r)))) for split, r in given.items()}
    for split, (_, part) in parts.items():
        if not part:
            raise ValueError(
                f"no image is left for {split}: {config.name} has {len(rows)} and "
                f"data.held_out={config.held_out}; change that or name a file in "
                f"data.{'validation, data.test' if split == 'train' else split}"
            )
    return parts


class CountedBatches:
    """Batches whose state includes the number of unreadable images skipped so far.

    Args:
        batches: iterator with ``get_state`` and ``set_state``.
        unreadable: counter that the data sources share.
        records: number of training records.
        digest: returns a checksum of the data; states with another one are refused.
    """

    def __init__(
        self,
        batches: Batches,
        unreadable: Unreadable,
        records: int,
        digest: Callable[[], int] = lambda: 0,
    ) -> None:
        self._batches, self._unreadable, self._records = batches, unreadable, records
        self._digest = functools.cache(digest)

    def __next__(self) -> Any:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """Returns the state as a JSON value."""
        return {
            "batches": self._batches.get_state(),
            "unreadable": dict(self._unreadable.reasons),
            "records": self._records,
            "data": self._digest(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that ``get_state`` returned.

        Raises:
            ValueError: the training records have changed.
        """
        if state["records"] != self._records:
            raise ValueError(
                f"the run began with {state['records']} records to train on and now "
                f"there are {self._records}: restore the data, or use another "
                "--workdir"
            )
        # States of older versions have no checksum of their data.
        check_same_data(state.get("data", self._digest()), self._digest())
        self._unreadable.reasons.update(state["unreadable"])
        self._batches.set_state(state["batches"])
