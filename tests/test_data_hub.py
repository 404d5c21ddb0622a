"""The Hugging Face Hub, through a stand-in that keeps repositories in a folder."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_data import write

from lewm_gym.data import Dataset
from lewm_gym.data.foreign.hub import pull, push
from lewm_gym.data.verify import verify
from lewm_gym.data.writer import PARTS

huggingface_hub = pytest.importorskip("huggingface_hub", reason="not installed: pip install 'lewm-gym[hub]'")


class Shelf:
    """Stands in for the Hub: the calls that we make, with the library's names of arguments."""

    root: Path

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "dataset" and exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://huggingface.co/datasets/{repo_id}"

    def upload_folder(self, *, folder_path, repo_id, repo_type, allow_patterns, commit_message):
        for path in folder_path.rglob("*"):
            name = str(path.relative_to(folder_path))
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.root / repo_id / name)

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, repo_type, commit_message):
        (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def repo_info(self, repo_id, *, repo_type, revision):
        names = [path.name for path in (self.root / repo_id).iterdir()]
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in names])

    @classmethod
    def snapshot_download(cls, repo_id, *, repo_type, revision, local_dir, allow_patterns):
        for path in (cls.root / repo_id).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, local_dir / path.name)

    @classmethod
    def hf_hub_download(cls, repo_id, filename, *, repo_type, revision):
        return str(cls.root / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(Shelf, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Shelf)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Shelf.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Shelf.hf_hub_download)
    return tmp_path / "hub" / "me" / "set"


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data", range(3))


def test_the_stand_in_has_the_librarys_arguments():
    import inspect

    api = huggingface_hub.HfApi
    for ours, theirs in (
        (Shelf.create_repo, api.create_repo),
        (Shelf.upload_folder, api.upload_folder),
        (Shelf.upload_file, api.upload_file),
        (Shelf.repo_info, api.repo_info),
        (Shelf.snapshot_download, huggingface_hub.snapshot_download),
        (Shelf.hf_hub_download, huggingface_hub.hf_hub_download),
    ):
        assert set(inspect.signature(ours).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)


def test_a_dataset_goes_to_the_hub_and_comes_back(dataset, hub, tmp_path):
    (dataset.folder / "notes.txt").write_text("private")
    assert push(dataset.folder, "me/set") == "https://huggingface.co/datasets/me/set"
    assert sorted(path.name for path in hub.iterdir()) == [
        "README.md",
        "episodes-000000-000002.arrow",
        "manifest.json",
    ]
    assert dataset.content_hash in (hub / "README.md").read_text()
    again = pull("me/set", tmp_path / "again")
    assert again.content_hash == dataset.content_hash and verify(again.folder) == []
    assert pull("me/set", tmp_path / "again").content_hash == dataset.content_hash


def test_a_damaged_download_is_named(dataset, hub, tmp_path):
    push(dataset.folder, "me/set")
    shard = hub / "episodes-000000-000002.arrow"
    data = bytearray(shard.read_bytes())
    data[500] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        ValueError, match="episodes-000000-000002.arrow is missing or damaged: delete it and pull again"
    ):
        pull("me/set", tmp_path / "again")


def test_nothing_is_mixed_up(dataset, hub, tmp_path):
    push(dataset.folder, "me/set")
    from dataclasses import replace

    other = write(tmp_path / "other", range(2), replace(dataset.header, seed=1))
    with pytest.raises(ValueError, match="holds another dataset"):
        pull("me/set", other.folder)
    assert Dataset.open(other.folder).content_hash == other.content_hash
    (hub / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds no dataset of lewm-gym"):
        pull("me/set", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_an_unfinished_collection_is_not_pushed(dataset, hub):
    (dataset.folder / PARTS).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="not finished"):
        push(dataset.folder, "me/set")
    with pytest.raises(FileNotFoundError, match="no dataset"):
        push(dataset.folder.parent / "nothing", "me/set")


@pytest.mark.parametrize("command", [["pull", "nothing"], ["push", "data", "me/set"]])
def test_a_hub_out_of_reach_is_one_line_and_leaves_nothing(dataset, tmp_path, command):
    before = sorted(tmp_path.rglob("*"))
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent", "HF_TOKEN": "hf_nobody"}
    done = subprocess.run(
        [sys.executable, "-m", "collect", *command],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=os.environ | nobody,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: the Hugging Face Hub could not be reached") and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_repository_that_does_not_exist_is_named(dataset, hub, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise huggingface_hub.errors.RepositoryNotFoundError.__new__(huggingface_hub.errors.RepositoryNotFoundError)

    monkeypatch.setattr(Shelf, "repo_info", refuse)
    with pytest.raises(FileNotFoundError, match="no dataset me/missing on the Hugging Face Hub, or it is private"):
        pull("me/missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
