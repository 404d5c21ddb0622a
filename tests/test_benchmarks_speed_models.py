"""The plain implementations that speed is compared with compute the same; the command prints its table."""

import json

import tiny
import torch

from benchmarks import speed_models
from benchmarks.__main__ import main
from lewm_gym.nn import vit
from lewm_gym.types import Batch


def test_plain_loss_equals_ours():
    model = tiny.model()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 4, 56, 56, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(pixels, torch.rand(6, 3, 10, generator=generator) * 2 - 1)
    torch.manual_seed(3)
    ours = model.loss(batch)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(speed_models.plain_loss(model, batch), ours, rtol=1e-4, atol=1e-5)


def test_fused_attention_is_put_back():
    ours = vit._attend
    with speed_models.fused_attention():
        assert vit._attend is not ours
    assert vit._attend is ours


def test_commands_print_a_table_and_write_what_was_measured(tmp_path, capsys):
    out = tmp_path / "speed.json"
    common = ["--presets", "laptop", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert main(["speed", "train", "--batch-size", "4", "--precisions", "float32", *common]) == 0
    assert "against plain" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert [f["how"] for f in written["figures"]] == ["ours", "plain"]
    assert all(f["seconds"] > 0 and f["flops"] > 1e6 and f["peak"] > 1e8 for f in written["figures"])
    assert set(written["figures"][0]["parts"]) == {"loading", "encoder", "predictor", "sigreg", "optimizer"}
