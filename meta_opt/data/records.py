"""Records of image, captions and label, and in-memory sources of them."""

from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> str:
    """Returns ``split`` if it is one of :data:`SPLITS`.

    Raises:
        ValueError: if it is not.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    return split


class Record(TypedDict):
    """One item: ``image`` uint8 [h, w, 3], its caption ``text`` and class ``label``.

    ``captions``, if there are several, has all captions, the main one first;
    ``prompt``, if there is one, is the question about the image.
    """

    image: np.ndarray
    text: str
    label: int
    captions: NotRequired[tuple[str, ...]]
    prompt: NotRequired[str]


@runtime_checkable
class Source(Protocol):
    """A Grain random-access data source of :class:`Record`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class MemorySource:
    """An in-memory source; encoded images are decoded once, on first access.

    Returned arrays are read-only views, since a source may be shared.
    """

    def __init__(
        self,
        images: np.ndarray | Sequence[bytes],
        captions: Sequence[str | Sequence[str]],
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        image_size: int | None = None,
        keys: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
    ):
        """Checks that the columns are consistent.

        Args:
            images: uint8 [B, h, w, 3], or the contents of B image files.
            captions: one or several texts per image; the first is the main one.
            labels: class indices, [B].
            class_names: K names that ``labels`` index.
            image_size: side in pixels that image files are resized to; required for
                files.
            keys: identifier of each record (a path, a code point), if there is one.
            prompts: question about each image, "" for none; None if there are no
                questions.

        Raises:
            ValueError: if lengths differ, a caption is missing or a label has no name.
        """
        self.captions = tuple(
            (c,) if isinstance(c, str) else tuple(c) for c in captions
        )
        self.labels = np.asarray(labels, np.int32).copy()
        self.labels.setflags(write=False)
        self.class_names = tuple(class_names)
        self.keys = tuple(keys) if keys is not None else None
        self.prompts = tuple(prompts) if prompts is not None else None
        count = len(self.captions)
        columns: dict[str, Any] = {
            "images": images,
            "captions": self.captions,
            "labels": self.labels,
        }
        columns |= {"keys": self.keys, "prompts": self.prompts}
        lengths = {k: len(v) for k, v in columns.items() if v is not None}
        if set(lengths.values()) != {count}:
            listed = ", ".join(f"{n} {name}" for name, n in lengths.items())
            raise ValueError(f"columns differ in length: {listed}")
        if not all(self.captions):
            empty = next(i for i, c in enumerate(self.captions) if not c)
            raise ValueError(f"record {empty} has no caption")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(class_names):
            raise ValueError(
                f"labels run from {self.labels.min()} to {self.labels.max()} but there "
                f"are {len(class_names)} class names"
            )
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                raise ValueError(
                    "images must be uint8 [B, h, w, 3], not "
                    f"{images.dtype} {list(images.shape)}"
                )
            self._encoded: list[bytes] | None = None
            self._pixels = images.view()
            self._pixels.setflags(write=False)
        else:
            if image_size is None:
                raise ValueError("image files need an image_size to be fitted to")
            self._encoded = list(images)
            self._store = np.empty((count, image_size, image_size, 3), np.uint8)
            self._present = np.zeros(count, bool)
            self._pixels = self._store.view()
            self._pixels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Record:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of a source of {len(self)}")
        index %= len(self)
        self._decode([index])
        record = Record(
            image=self._pixels[index],
            text=self.captions[index][0],
            label=int(self.labels[index]),
        )
        if self.prompts is not None:
            record["prompt"] = self.prompts[index]
        return record

    def __repr__(self) -> str:
        return (
            f"MemorySource({len(self)} records, {len(self.class_names)} classes, "
            f"{self._pixels.shape[1]}x{self._pixels.shape[2]} px)"
        )

    def images(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns uint8 [B, h, w, 3]: copies at ``indices``, or a view of all."""
        if indices is None:
            self._decode(range(len(self)))
            return self._pixels
        self._decode(indices)
        return self._pixels[indices]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "MemorySource":
        """Returns a source of the records at ``indices``, in this order."""
        indices = np.asarray(indices, np.int64)
        if self._encoded is None:
            images: np.ndarray | list[bytes] = self._pixels[indices]
        else:
            images = [self._encoded[i] for i in indices]
        return MemorySource(
            images,
            [self.captions[i] for i in indices],
            self.labels[indices],
            self.class_names,
            self._pixels.shape[1],
            *(
                None if column is None else [column[i] for i in indices]
                for column in (self.keys, self.prompts)
            ),
        )

    def resized(self, size: int) -> "MemorySource":
        """Returns a source of the same records with images resized to ``size`` pixels.

        Image files, if available, are decoded again.
        """
        if self._pixels.shape[1:3] == (size, size):
            return self
        images: np.ndarray | list[bytes]
        if self._encoded is None:
            images = np.stack([_resized(image, size) for image in self._pixels])
        else:
            images = self._encoded
        return MemorySource(
            images,
            self.captions,
            self.labels,
            self.class_names,
            size,
            self.keys,
            self.prompts,
        )

    def _decode(self, indices: Sequence[int] | np.ndarray | range) -> None:
        if self._encoded is None:
            return
        from meta_opt.data.preprocessing.images import decode, fit_square

        indices = np.asarray(indices, np.int64)
        size = self._store.shape[1]
        for i in indices[~self._present[indices]]:
            self._store[i] = fit_square(decode(self._encoded[i]), size)
            self._present[i] = True


def source_arrays(
    source: Source, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a whole source as arrays, for in-memory tasks.

    Args:
        source: any source; its images must have the same shape unless ``size`` is
            given.
        size: side in pixels to resize images to; None keeps their size.

    Returns:
        Images uint8 [B, h, w, 3] and labels int32 [B].

    Raises:
        ValueError: if the source is empty.
    """
    if len(source) == 0:
        raise ValueError("the source is empty")
    if isinstance(source, MemorySource):
        images, labels = source.images(), source.labels
    else:
        records = [source[i] for i in range(len(source))]
        labels = np.asarray([r["label"] for r in records], np.int32)
        pictures = [r["image"] for r in records]
        if size is not None:
            pictures = [_resized(p, size) for p in pictures]
        images = np.stack(pictures)
    if size is not None and images.shape[1:3] != (size, size):
        images = np.stack([_resized(image, size) for image in images])
    return images, labels


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    from meta_opt.data.preprocessing.images import fit_square

    if image.shape[:2] == (size, size):
        return image
    return fit_square(Image.fromarray(image), size)
