"""Several datasets as one, for training on the episodes of different policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lewm_gym.data.dataset import Dataset
from lewm_gym.data.format.header import Header, merged
from lewm_gym.data.format.manifest import Manifest
from lewm_gym.data.format.shard import Shard

#: What must agree for episodes to be of one kind; policy, noise, seed and variations may differ.
_ALIKE = ("task", "render_quality", "states_only", "picture_every")


class DatasetUnion(Dataset):
    """The episodes of several datasets of one task, one after the other.

    `folder` is the first one's, where features are kept; `header` names all policies; `content_hash` is that of all
    episodes, whatever their order. Everything else is as in `Dataset`.

    Args:
        parts: At least two.

    Raises:
        ValueError: If they do not fit together: different tasks, columns, render quality or storage, or the same
            dataset twice.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        _check_alike(parts)
        shards = tuple(shard for part in parts for shard in part.manifest.shards)
        super().__init__(parts[0].folder, Manifest(_header(parts), shards))
        self.parts = tuple(parts)
        self._shards_before = np.cumsum([0, *(len(part.manifest.shards) for part in parts)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns its parts for pickling."""
        return DatasetUnion, (self.parts,)

    def _shard(self, i: int) -> Shard:
        part = int(np.searchsorted(self._shards_before, i, side="right")) - 1
        return self.parts[part]._shard(i - int(self._shards_before[part]))


def open_datasets(folders: str | Path | Iterable[str | Path]) -> Dataset:
    """Returns the dataset in a folder, or the union of those in several.

    Raises:
        FileNotFoundError: If there is no dataset in one of them.
        ValueError: If one is damaged, or they do not fit together.
    """
    paths = [folders] if isinstance(folders, str | Path) else list(folders)
    if not paths:
        raise ValueError("name at least one dataset folder")
    parts = [Dataset.open(path) for path in paths]
    return parts[0] if len(parts) == 1 else DatasetUnion(parts)


def parts_of(dataset: Dataset) -> tuple[Dataset, ...]:
    """Returns the parts of a union, or the dataset itself."""
    return dataset.parts if isinstance(dataset, DatasetUnion) else (dataset,)


def _check_alike(parts: Sequence[Dataset]) -> None:
    first, seen = parts[0], {parts[0].content_hash: parts[0].folder}
    for part in parts[1:]:
        different = [name for name in _ALIKE if getattr(part.header, name) != getattr(first.header, name)]
        if different:
            what = ", ".join(f"{n} {getattr(first.header, n)!r} and {getattr(part.header, n)!r}" for n in different)
            raise ValueError(f"{first.folder} and {part.folder} do not fit together: {what}")
        for name, one, two in (
            ("columns", _columns(first), _columns(part)),
            ("action bounds", _bounds(first), _bounds(part)),
            ("frames are stored", _stored(first), _stored(part)),
        ):
            if one != two:
                raise ValueError(f"{first.folder} and {part.folder} do not fit together: {name} {one} and {two}")
        if part.content_hash in seen:
            raise ValueError(f"{seen[part.content_hash]} and {part.folder} hold the same episodes: name it once")
        seen[part.content_hash] = part.folder


def _columns(dataset: Dataset) -> dict[str, tuple[int, str]]:
    return {name: (column.size, column.dtype) for name, column in dataset.header.columns.items()}


def _bounds(dataset: Dataset) -> list[list[float]]:
    return [dataset.action_low.tolist(), dataset.action_high.tolist()]


def _stored(dataset: Dataset) -> str | None:
    return dataset.codec.layout if dataset.has_pixels else None


def _header(parts: Sequence[Dataset]) -> Header:
    headers = [part.header for part in parts]
    changes: dict[str, Any] = {
        "policy": " + ".join(dict.fromkeys(header.policy for header in headers)),
        "variations": tuple(sorted({name for header in headers for name in header.variations})),
    }
    if len({header.noise for header in headers}) > 1:
        changes["noise"] = None
    return replace(merged(headers), **changes)
