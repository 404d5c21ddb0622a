"""Datasets elsewhere: on a local S3 server, on the Hugging Face Hub through stand-ins, and in a folder by its URL."""

from __future__ import annotations

import fnmatch
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_data import write

from collect.__main__ import main
from lewm_gym.data import Dataset, remote
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.remote import address_of, pull, push
from lewm_gym.data.verify import verify
from lewm_gym.data.writer import PARTS

fsspec = pytest.importorskip("fsspec", reason="not installed: pip install 'lewm-gym[remote]'")
local = pytest.importorskip("fsspec.implementations.local")


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data", range(103))  # three shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEWM_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def damage(path):
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


def test_what_is_an_address():
    for name in ("s3://bucket/pusht", "s3://bucket/pusht/", Path("s3://bucket/pusht")):  # a Path has lost a slash
        assert address_of(name) == "s3://bucket/pusht"
    assert address_of("hf://me/set") == address_of("hf://datasets/me/set") == "hf://datasets/me/set"
    assert address_of("file:///tmp/x") == "file:///tmp/x"
    for name in ("data/pusht", "/data/pusht", Path("data"), "C:/data", "a:b", "me/set"):
        assert address_of(name) is None


# A local S3 server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    moto = pytest.importorskip("moto.server", reason="not installed: pip install 'moto[s3]' flask flask-cors")
    pytest.importorskip("s3fs", reason="not installed: pip install 'lewm-gym[remote]'")
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch, request):
    """An empty bucket, `s3://...`, and how to get at it."""
    for name, value in {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"s3://bucket-{abs(hash(request.node.name))}"
    files.mkdir(name)
    return name, files


def test_a_dataset_goes_to_s3_and_is_opened_there(dataset, bucket, cache, tmp_path, capsys):
    name, files = bucket
    (dataset.folder / "notes.txt").write_text("private")
    assert main(["push", str(dataset.folder), f"{name}/set"]) == 0
    assert capsys.readouterr().out == f"{name}/set\n"
    there = {Path(path).name for path in files.find(f"{name}/set")}
    assert there == {MANIFEST_NAME, *(shard.file for shard in dataset.manifest.shards)}
    opened = Dataset.open(f"{name}/set")
    assert opened.manifest == dataset.manifest and verify(opened.folder) == [] and cache in opened.folder.parents
    assert main(["pull", f"{name}/set", "--out", str(tmp_path / "again")]) == 0
    assert Dataset.open(tmp_path / "again").manifest == dataset.manifest
    assert main(["describe", f"{name}/set"]) == 0  # commands take addresses where they take folders
    # what is here already is not fetched again, unless it is damaged
    fetched = []
    get = remote._Folder.get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            remote._Folder, "get", lambda self, what, path: fetched.append(path.name) or get(self, what, path)
        )
        Dataset.open(f"{name}/set")
        assert fetched == []
        damage(opened.folder / dataset.manifest.shards[1].file)
        assert Dataset.open(f"{name}/set").n_episodes == 103
        assert fetched == [dataset.manifest.shards[1].file] and verify(opened.folder) == []


def test_an_upload_that_was_killed_is_no_dataset_and_goes_on(dataset, bucket):
    name, files = bucket
    code = f"""
import os, signal
from lewm_gym.data import remote
def die(done, of):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
remote.push({str(dataset.folder)!r}, "{name}/set", progress=die)"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(files.find(f"{name}/set", refresh=True)) == 2
    with pytest.raises(ValueError, match=r"set holds shards but no manifest.json: its upload is not finished, push it"):
        Dataset.open(f"{name}/set")
    put, sent = remote._Folder.put, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote._Folder, "put", lambda self, path: sent.append(path.name) or put(self, path))
        push(dataset.folder, f"{name}/set")
    assert sent == [dataset.manifest.shards[2].file, MANIFEST_NAME]
    assert Dataset.open(f"{name}/set").content_hash == dataset.content_hash


def test_a_shard_that_is_damaged_there_is_named_and_mended_by_pushing_again(dataset, bucket, tmp_path):
    name, files = bucket
    push(dataset.folder, f"{name}/set")
    shard = dataset.manifest.shards[1].file
    content = bytearray(files.cat_file(f"{name}/set/{shard}"))
    content[500] ^= 1
    files.pipe_file(f"{name}/set/{shard}", bytes(content))
    with pytest.raises(ValueError, match=rf"set/{shard} is damaged: push the dataset there again"):
        pull(f"{name}/set", tmp_path / "again")
    with pytest.raises(ValueError, match="is listed in the manifest but missing"):  # half of it is no dataset
        Dataset.open(tmp_path / "again")
    push(dataset.folder, f"{name}/set")
    assert verify(pull(f"{name}/set", tmp_path / "again")) == []


def test_an_address_that_does_not_answer_is_one_line(bucket, tmp_path, monkeypatch):
    name, _ = bucket
    with pytest.raises(FileNotFoundError, match=rf"there is no dataset at {name}/nothing \(no manifest.json\)"):
        Dataset.open(f"{name}/nothing")
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-m", "collect", "pull", "s3://nobody/set"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | environment
    )
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "data").exists()
    assert done.stderr.startswith("error: s3://nobody/set does not answer, or refuses") and done.stderr.count("\n") == 1


# Any other store, here a folder by its URL ------------------------------------------------------------------------


def test_a_dataset_that_grew_follows_and_another_one_does_not(dataset, tmp_path):
    address = f"file://{tmp_path}/there/set"
    push(dataset.folder, address)
    bigger = write(dataset.folder, range(103, 105))
    push(bigger.folder, address)
    assert Dataset.open(address).n_episodes == 105
    assert {path.name for path in (tmp_path / "there/set").iterdir()} == {
        MANIFEST_NAME,
        *(shard.file for shard in bigger.manifest.shards),
    }
    other = write(tmp_path / "other", range(2), replace(dataset.header, seed=1))
    for where in (lambda: push(other.folder, address), lambda: pull(address, other.folder)):
        with pytest.raises(ValueError, match="holds another dataset: choose another one"):
            where()
    smaller = write(tmp_path / "smaller", range(50))
    with pytest.raises(ValueError, match="holds 55 episodes that would be lost"):
        push(smaller.folder, address)
    assert Dataset.open(other.folder).content_hash == other.content_hash
    with pytest.raises(ValueError, match=r"nothing://x/y: .* expected s3://, gs://, hf:// or another of fsspec's"):
        Dataset.open("nothing://x/y")


def test_an_unfinished_collection_is_not_pushed(dataset, tmp_path):
    (dataset.folder / PARTS).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="not finished"):
        push(dataset.folder, f"file://{tmp_path}/there")
    with pytest.raises(FileNotFoundError, match="no dataset"):
        push(dataset.folder.parent / "nothing", f"file://{tmp_path}/there")


# The Hugging Face Hub -------------------------------------------------------------------------------------------


class Shelf:
    """Stands in for the Hub's API, with the library's names of arguments."""

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


class ShelfFiles(local.LocalFileSystem):
    """Stands in for the Hub's file system."""

    protocol = "hf"

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path).removeprefix("hf://")
        return (
            str(Shelf.root / path.removeprefix("datasets/").partition("@")[0]) if path.startswith("datasets") else path
        )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="not installed: pip install 'lewm-gym[hub]'")
    monkeypatch.setattr(Shelf, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Shelf)
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", ShelfFiles)
    return tmp_path / "hub" / "me" / "set"


def test_the_stand_in_has_the_librarys_arguments():
    import inspect

    huggingface_hub = pytest.importorskip("huggingface_hub", reason="not installed: pip install 'lewm-gym[hub]'")
    for name in ("create_repo", "upload_folder", "upload_file"):
        ours, theirs = getattr(Shelf, name), getattr(huggingface_hub.HfApi, name)
        assert set(inspect.signature(ours).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)


def test_a_dataset_goes_to_the_hub_and_comes_back(dataset, hub, tmp_path):
    (dataset.folder / "notes.txt").write_text("private")
    assert push(dataset.folder, "me/set") == "https://huggingface.co/datasets/me/set"
    files = {shard.file for shard in dataset.manifest.shards}
    assert {path.name for path in hub.iterdir()} == {"README.md", MANIFEST_NAME, *files}
    assert dataset.content_hash in (hub / "README.md").read_text()
    for address in ("me/set", "hf://datasets/me/set"):
        again = Dataset.open(pull(address, tmp_path / "again", revision="main"))
        assert again.content_hash == dataset.content_hash and verify(again.folder) == []
    assert Dataset.open("hf://me/set").content_hash == dataset.content_hash
    damage(hub / dataset.manifest.shards[0].file)
    with pytest.raises(ValueError, match="is damaged: push the dataset there again"):
        pull("me/set", tmp_path / "third")
    with pytest.raises(
        FileNotFoundError, match="no dataset at hf://datasets/me/missing .* or it is private and you are"
    ):
        pull("me/missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["pull", "nothing"], ["push", "data", "me/set"]])
def test_a_hub_out_of_reach_is_one_line_and_leaves_nothing(dataset, tmp_path, command):
    pytest.importorskip("huggingface_hub", reason="not installed: pip install 'lewm-gym[hub]'")
    before = sorted(tmp_path.rglob("*"))
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent", "HF_TOKEN": "hf_nobody"}
    done = subprocess.run(
        [sys.executable, "-m", "collect", *command],
        capture_output=True, text=True, timeout=240, cwd=tmp_path, env=os.environ | nobody,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "does not answer, or refuses" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
