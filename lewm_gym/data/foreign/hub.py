"""Datasets on the Hugging Face Hub: the folder with a dataset card; verified by its hashes after a download."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lewm_gym.data.dataset import Dataset
from lewm_gym.data.format.manifest import MANIFEST_NAME, SHARD_PATTERN, load_manifest
from lewm_gym.data.writer import PARTS
from lewm_gym.files import exclusive, make_folder, sha256

#: What a dataset is; locks, parts and whatever else lies in the folder stay here.
FILES = (MANIFEST_NAME, SHARD_PATTERN, "contact_sheet.png", "film.mp4")
_KIND = "dataset"


def push(folder: str | Path, repository: str, private: bool = False) -> str:
    """Uploads a dataset and returns its address; existing files are not uploaded again.

    You must be logged in (`hf auth login`, or the environment variable HF_TOKEN).

    Args:
        folder: Of the dataset.
        repository: Such as "my-name/pusht-expert"; created if it does not exist.
        private: Whether a new repository is visible to its owner only.

    Raises:
        FileNotFoundError: If there is no dataset in the folder.
        ValueError: If its collection is not finished, or another process is writing it.
        OSError: If the Hub cannot be reached or rejects the request, as without a login.
        ImportError: Without huggingface_hub.
    """
    hub, folder = _hub(), Path(folder)
    dataset = Dataset.open(folder)
    if load_manifest(folder) != dataset.manifest or (folder / PARTS).is_dir():
        raise ValueError(
            f"{folder}: its collection is not finished, or shards were moved in: run the same collect command again, "
            "which lists them"
        )
    with exclusive(folder), _reaching(hub, repository):
        api = hub.HfApi()
        address = api.create_repo(repository, repo_type=_KIND, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type=_KIND,
            allow_patterns=list(FILES),
            commit_message=f"{dataset.n_episodes} episodes, content {dataset.content_hash}",
        )
        api.upload_file(
            path_or_fileobj=card(dataset, repository).encode(),
            path_in_repo="README.md",
            repo_id=repository,
            repo_type=_KIND,
            commit_message="Describe the dataset",
        )
    return str(address)


def pull(repository: str, folder: str | Path, revision: str | None = None) -> Dataset:
    """Returns the dataset downloaded from the Hub; an interrupted download continues, and every file's hash is checked.

    Args:
        repository: Such as "my-name/pusht-expert".
        folder: Output folder.
        revision: Branch, tag or commit; None: the newest.

    Raises:
        ValueError: If the folder holds another dataset, the repository none, or a file is damaged.
        OSError: If the Hub cannot be reached or rejects the request, as for a missing repository.
        ImportError: Without huggingface_hub.
    """
    hub, folder = _hub(), Path(folder)
    if folder.is_dir() and any(folder.glob(SHARD_PATTERN)) and not (folder / MANIFEST_NAME).exists():
        raise ValueError(f"{folder} holds shards of another dataset: choose another --out")
    with _reaching(hub, repository):  # before the folder is made: snapshot_download takes a folder for a download
        there = hub.HfApi().repo_info(repository, repo_type=_KIND, revision=revision)
    if MANIFEST_NAME not in {file.rfilename for file in there.siblings or ()}:
        raise ValueError(f"{repository} on the Hub holds no dataset of lewm-gym (it has no {MANIFEST_NAME})")
    make_folder(folder)
    with exclusive(folder):
        before = load_manifest(folder)
        with _reaching(hub, repository):  # one commit, whatever is pushed meanwhile
            if before is not None:
                wanted = hub.hf_hub_download(repository, MANIFEST_NAME, repo_type=_KIND, revision=there.sha)
                theirs = load_manifest(Path(wanted).parent)
                if theirs is None or theirs.header.recipe != before.header.recipe:
                    raise ValueError(f"{folder} holds another dataset: choose another --out")
            hub.snapshot_download(
                repository, repo_type=_KIND, revision=there.sha, local_dir=folder, allow_patterns=list(FILES)
            )
        manifest = load_manifest(folder)
        if manifest is None:
            raise ValueError(f"{folder / MANIFEST_NAME} is missing: pull again")
        for shard in manifest.shards:
            path = folder / shard.file
            if not path.exists() or sha256(path) != shard.sha256:
                raise ValueError(f"{path} is missing or damaged: delete it and pull again")
    return Dataset.open(folder)


def card(dataset: Dataset, repository: str) -> str:
    """Returns the dataset card."""
    header = dataset.header
    return f"""---
tags:
- world-model
- lewm-gym
- robotics
---
# {header.task}: {dataset.n_episodes:,} episodes

{dataset.n_pictures:,} pictures of 224 x 224 px (lossless), one of every {dataset.picture_every} frames; of all
{dataset.n_frames:,} actions, states and physical quantities.
Policy `{header.policy}`,
seed {header.seed}. Content `{dataset.content_hash}`.

    pip install 'lewm-gym[hub]'
    python -m collect pull {repository} --out data/{repository.rpartition("/")[2]}

```python
from lewm_gym.data import Dataset

dataset = Dataset.open("data/{repository.rpartition("/")[2]}")
```
"""


@contextlib.contextmanager
def _reaching(hub: Any, repository: str) -> Iterator[None]:
    """Turns errors of the Hub or the network into one-line errors; other errors are not changed.

    Failures to connect are those of the library below, requests or httpx by version: its HTTPError is the base of the
    Hub's, and of httpx's ConnectError, which unlike that of requests is no OSError.
    """
    try:
        yield
    except hub.errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"there is no dataset {repository} on the Hugging Face Hub, or it is private and you are not logged in "
            "(hf auth login)"
        ) from None
    except (OSError, *hub.errors.HfHubHTTPError.__bases__) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of our disk
        why = " ".join(str(error).split())
        raise ConnectionError(f"the Hugging Face Hub could not be reached, or refuses {repository}: {why}") from None


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ImportError("the Hugging Face Hub needs huggingface_hub: pip install 'lewm-gym[hub]'") from None
    return huggingface_hub
