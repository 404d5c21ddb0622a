"""Datasets elsewhere: on S3, Google Cloud Storage, the Hugging Face Hub, and whatever else fsspec reaches.

    s3://bucket/folder   gs://bucket/folder   hf://datasets/user/name[@revision]   user/name, on the Hub

There, too, a dataset is a folder of shards and a manifest that lists them with their hashes. The manifest is uploaded
last: without it there is no dataset, and what an interrupted upload left is used by the next one. What is downloaded
is checked against these hashes before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lewm_gym.data.format.manifest import MANIFEST_NAME, SHARD_PATTERN, Manifest, ShardInfo, load_manifest, scan
from lewm_gym.data.writer import PARTS
from lewm_gym.files import atomic_path, cache_folder, exclusive, make_folder, sha256

PICTURES = ("contact_sheet.png", "film.mp4")  # beside the dataset, where there are any
HUB = "hf"
_CHUNK = 2**22  # bytes
#: Of our disk, not of what is elsewhere.
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

#: Called with the number of shards done, and of all.
Progress = Callable[[int, int], None]


def address_of(name: str | Path) -> str | None:
    """Returns the address that a name means, None for a folder of this machine.

    A `Path` of an address, which holds one slash only after the protocol, means it, too.
    """
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):(?://|/(?!/))(.+)", str(name))
    if found is None:
        return None
    protocol, rest = found[1], found[2].rstrip("/")
    if protocol == HUB and rest.split("/")[0] not in ("datasets", "models", "spaces", "buckets"):
        rest = f"datasets/{rest}"
    return f"{protocol}://{rest}"


def push(folder: str | Path, address: str, private: bool = False, progress: Progress | None = None) -> str:
    """Uploads a dataset and returns its address; shards that are there already are not uploaded again.

    They are read back, and compared by their hashes. On the Hub you must be logged in (`hf auth login`, or HF_TOKEN).

    Args:
        folder: Of the dataset.
        address: Where to; without a protocol, of a dataset on the Hub, such as "my-name/pusht-expert".
        private: On the Hub: whether a new repository is visible to its owner only.
        progress: Called after each shard.

    Raises:
        FileNotFoundError: If there is no dataset in the folder.
        ValueError: If its collection is not finished, another process is writing it, or another dataset is there.
        OSError: If the address does not answer, or refuses.
        ImportError: Without the package for the protocol.
    """
    folder, address = Path(folder), address_of(address) or f"{HUB}://datasets/{address}"
    manifest = scan(folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder} has no dataset: make one with python -m collect TASK --out {folder}")
    if load_manifest(folder) != manifest or (folder / PARTS).is_dir():
        raise ValueError(
            f"{folder}: its collection is not finished, or shards were moved in: run the same collect command again, "
            "which lists them"
        )
    with exclusive(folder):
        if address.startswith(f"{HUB}://"):
            return _push_to_hub(manifest, folder, address, private)
        there = _Folder(address)
        before = there.manifest()
        _check_follows(manifest, before, address)
        sizes = there.sizes()
        for number, shard in enumerate(manifest.shards, start=1):
            if sizes.get(shard.file) != shard.bytes or there.sha256(shard.file) != shard.sha256:
                there.put(folder / shard.file)
            if progress is not None:
                progress(number, len(manifest.shards))
        for name in (*PICTURES, MANIFEST_NAME):  # the manifest last
            if (folder / name).is_file():
                there.put(folder / name)
        kept = {shard.file for shard in manifest.shards}
        for shard in before.shards if before is not None else ():
            if shard.file not in kept:  # a larger one holds its episodes, too
                there.remove(shard.file)
    return address


def pull(
    address: str, folder: str | Path, revision: str | None = None, wait: bool = False, progress: Progress | None = None
) -> Path:
    """Returns the folder with the dataset, downloaded; what an interruption left is used. Every hash is checked.

    Args:
        address: Where from; without a protocol, of a dataset on the Hub.
        folder: Output folder.
        revision: On the Hub: branch, tag or commit; None: the newest.
        wait: Whether to wait for another process that writes the folder.
        progress: Called after each shard.

    Raises:
        FileNotFoundError: If there is no dataset.
        ValueError: If the folder holds another dataset, an upload is not finished, or a file is damaged.
        OSError: If the address does not answer, or refuses.
        ImportError: Without the package for the protocol.
    """
    folder, address = Path(folder), address_of(address) or f"{HUB}://datasets/{address}"
    there = _Folder(address if revision is None else f"{address}@{revision}")
    theirs = there.manifest()
    if theirs is None:
        if any(Path(name).match(SHARD_PATTERN) for name in there.sizes()):
            raise ValueError(
                f"{address} holds shards but no {MANIFEST_NAME}: its upload is not finished, push it again"
            )
        hint = ", or it is private and you are not logged in (hf auth login)" if there.is_hub else ""
        raise FileNotFoundError(f"there is no dataset at {address} (no {MANIFEST_NAME}){hint}")
    if folder.is_dir() and any(folder.glob(SHARD_PATTERN)) and not (folder / MANIFEST_NAME).exists():
        raise ValueError(f"{folder} holds shards of another dataset: choose another --out")
    make_folder(folder)
    with exclusive(folder, wait):
        ours = load_manifest(folder)
        _check_follows(theirs, ours, folder)
        if theirs != ours:  # first: what it lists and is not there yet keeps the folder from being opened
            theirs.save(folder)
        for number, shard in enumerate(theirs.shards, start=1):
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes or sha256(path) != shard.sha256:
                there.get(shard, path)
            if progress is not None:
                progress(number, len(theirs.shards))
        for name in set(PICTURES) & set(there.sizes()):
            there.get(name, folder / name)
    return folder


def cached(address: str) -> Path:
    """Returns the folder of this machine's copy of a dataset, complete and checked; makes it, or completes it.

    It is below `lewm_gym.files.cache_folder()`, and may be deleted.

    Raises:
        ValueError, OSError, ImportError: As `pull`.
    """
    name = re.sub(r"[^\w.-]+", "-", address.partition("://")[2])
    folder = cache_folder() / "datasets" / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    return pull(address, folder, wait=True)


def _check_follows(new: Manifest, before: Manifest | None, where: str | Path) -> None:
    """Raises ValueError unless a manifest may replace the one that is there: of the same recipe, no episode lost."""
    if before is None:
        return
    if before.header.recipe != new.header.recipe:
        raise ValueError(f"{where} holds another dataset: choose another one, or delete it")
    have = {number for shard in new.shards for number in shard.episodes}
    lost = sum(number not in have for shard in before.shards for number in shard.episodes)
    if lost:
        raise ValueError(f"{where} holds {lost} episodes that would be lost: choose another one, or add them first")


class _Folder:
    """A folder elsewhere. Its methods raise FileNotFoundError, PermissionError or ConnectionError, naming the address.

    Args:
        address: With its protocol.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            import fsspec.core
        except ImportError:
            raise ImportError(f"{address} needs fsspec: pip install 'lewm-gym[remote]'") from None
        with self.reaching():
            try:
                options = {"auto_mkdir": True} if address.startswith("file://") else {}
                self._fs, self._root = fsspec.core.url_to_fs(address, **options)
            except ImportError as error:
                raise ImportError(f"{address}: {error} (pip install 'lewm-gym[remote]' brings that for S3)") from None
            except ValueError as error:  # an unknown protocol
                raise ValueError(f"{address}: {error}; expected s3://, gs://, hf:// or another of fsspec's") from None
            self._fs.invalidate_cache()

    def manifest(self) -> Manifest | None:
        """Returns the manifest, None without one."""
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, MANIFEST_NAME)
            with self.reaching():
                try:
                    content = self._fs.cat_file(f"{self._root}/{MANIFEST_NAME}")
                except FileNotFoundError:
                    return None
            path.write_bytes(content)
            try:
                return load_manifest(Path(name))
            except ValueError as error:
                why = str(error).replace(str(path), f"{self.address}/{MANIFEST_NAME}").rpartition(":")[0]
                raise ValueError(f"{why}: push it again") from None

    def sizes(self) -> dict[str, int]:
        """Returns name -> bytes of all files."""
        with self.reaching():
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {info["name"].rpartition("/")[2]: int(info["size"] or 0) for info in found if info["type"] == "file"}

    def sha256(self, name: str) -> str:
        """Returns the SHA-256 of a file, read once."""
        digest = hashlib.sha256()
        with self.reaching(), self._fs.open(f"{self._root}/{name}", "rb", block_size=_CHUNK) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def put(self, path: Path) -> None:
        """Uploads a file, which is there whole or not at all where the store has no partial files."""
        with self.reaching():
            self._fs.put_file(str(path), f"{self._root}/{path.name}")

    def get(self, what: ShardInfo | str, path: Path) -> None:
        """Downloads a file, whole or not at all; a shard only if its hash is the manifest's.

        Raises:
            ValueError: If it is not.
        """
        name = what if isinstance(what, str) else what.file
        with atomic_path(path) as temporary:
            with self.reaching():
                self._fs.get_file(f"{self._root}/{name}", str(temporary))
            if isinstance(what, ShardInfo) and sha256(temporary) != what.sha256:
                raise ValueError(f"{self.address}/{name} is damaged: push the dataset there again")

    def remove(self, name: str) -> None:
        """Removes a file."""
        with self.reaching():
            self._fs.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turns whatever the libraries below raise into a line about the address, errors of our disk aside."""
        try:
            yield
        except (ImportError, ValueError) as error:
            if type(error) in (ImportError, ValueError):
                raise
            raise ConnectionError(f"{self.address} does not answer, or refuses: {_line(error)}") from None
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.address} is not there: {_line(error)}") from None
        except PermissionError as error:
            raise PermissionError(f"{self.address} refuses: {_line(error)}; are your credentials set?") from None
        except Exception as error:  # of each store's own classes
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            raise ConnectionError(f"{self.address} does not answer, or refuses: {_line(error)}") from None

    @property
    def is_hub(self) -> bool:
        """Whether it is on the Hugging Face Hub."""
        return self.address.startswith(f"{HUB}://")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# The Hugging Face Hub ----------------------------------------------------------------------------------------


def _push_to_hub(manifest: Manifest, folder: Path, address: str, private: bool) -> str:
    """Uploads a dataset in one commit: the Hub limits their number, and knows the files that it has by their hashes."""
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ImportError("the Hugging Face Hub needs huggingface_hub: pip install 'lewm-gym[hub]'") from None
    repository = address.removeprefix(f"{HUB}://datasets/")
    with _Folder(address).reaching():
        api = hub.HfApi()
        where = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            allow_patterns=[MANIFEST_NAME, SHARD_PATTERN, *PICTURES],
            commit_message=f"{manifest.n_episodes} episodes, content {manifest.content_hash}",
        )
        api.upload_file(
            path_or_fileobj=card(manifest, repository).encode(),
            path_in_repo="README.md",
            repo_id=repository,
            repo_type="dataset",
            commit_message="Describe the dataset",
        )
    return str(where)


def card(manifest: Manifest, repository: str) -> str:
    """Returns the dataset card."""
    header = manifest.header
    pictures = f"pictures of 224 x 224 px (lossless) of one of every {header.picture_every} frames; "
    return f"""---
tags:
- world-model
- lewm-gym
- robotics
---
# {header.task}: {manifest.n_episodes:,} episodes

{"" if header.codec is None else pictures}of all {manifest.n_frames:,} frames actions, states and physical quantities.
Policy `{header.policy}`,
seed {header.seed}. Content `{manifest.content_hash}`.

    pip install 'lewm-gym[hub]'

```python
from lewm_gym.data import Dataset

dataset = Dataset.open("hf://datasets/{repository}")
```
"""
