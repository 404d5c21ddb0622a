"""The commands import and export, on the command line."""

from __future__ import annotations

import pytest
from test_data import write

import collect.__main__
from lewm_gym.data import Dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "set", range(2))


def command(*arguments):
    return collect.__main__.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(("name", "needs"), [("hdf5", "h5py"), ("minari", "minari"), ("lerobot", "pyarrow")])
def test_every_format_goes_out_and_comes_in(dataset, tmp_path, capsys, name, needs):
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    out = tmp_path / ("file.h5" if name == "hdf5" else "folder")
    assert command("export", dataset.folder, "--format", name, "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    assert command("import", out, "--task", "two_room", "--out", tmp_path / "again") == 0
    assert "2 episodes" in capsys.readouterr().out
    assert Dataset.open(tmp_path / "again").lengths.tolist() == dataset.lengths.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "SET", "--lossy"), "needs --format minari"),
        (("import", "nowhere", "--out", "x"), "there is no file or folder nowhere"),
        (("import", "SET/manifest.json", "--out", "x"), "manifest.json does not contain its task: add --task"),
        (("import", "SET", "--out", "x", "--state", "pose"), "--state does not apply to minari"),
    ],
)
def test_options_that_do_not_fit_are_named(dataset, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        command(*(argument.replace("SET", str(dataset.folder)) for argument in arguments))
