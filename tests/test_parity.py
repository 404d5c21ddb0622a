"""Our networks against independent ones (Hugging Face's ViT, the reference's LeWM), and reading released weights."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from reference import reference

from agents import pretrained
from agents.lewm import LeWM, LeWMAgent, LeWMConfig
from lewm_gym import checkpoint
from lewm_gym.nn.images import to_network
from lewm_gym.nn.resnet import ResNet18
from lewm_gym.types import Batch

STATISTICS = {"action_mean": [0.1, -0.1], "action_std": [0.2, 0.3]}


def released(model: LeWM, scheme: int) -> dict[str, torch.Tensor]:
    """Our weights under the reference's names, by inverting nothing of ours: written out by hand for one scheme."""
    out = {}
    for name, tensor in model.state_dict().items():
        if name in ("action_mean", "action_std"):
            continue
        part, _, rest = name.partition(".")
        if part == "encoder":
            out |= _vit(rest, tensor, scheme)
        elif part in ("projector", "prediction_projector"):
            layer, _, leaf = rest.partition(".")
            index = {"linear_in": 0, "norm": 1, "linear_out": 3}[layer]
            out[f"{'projector' if part == 'projector' else 'pred_proj'}.net.{index}.{leaf}"] = tensor
        elif part == "action_encoder":
            layer, _, leaf = rest.partition(".")
            if layer == "smooth":
                out[f"action_encoder.patch_embed.{leaf}"] = tensor[..., None] if leaf == "weight" else tensor
            else:
                out[f"action_encoder.embed.{0 if layer == 'linear_in' else 2}.{leaf}"] = tensor
        elif rest == "positions":
            out["predictor.pos_embedding"] = tensor
        elif rest.startswith("norm."):
            out[f"predictor.transformer.{rest}"] = tensor
        else:
            rest = rest.replace("blocks.", "layers.").replace(".modulation.", ".adaLN_modulation.1.")
            rest = rest.replace(".attention.query_key_value.", ".attn.to_qkv.").replace(
                ".attention.out.", ".attn.to_out."
            )
            rest = rest.replace(".attention.norm.", ".attn.norm.").replace(".mlp.", ".mlp.net.")
            out[f"predictor.transformer.{rest}"] = tensor
    return out


def _vit(rest, tensor, scheme):
    simple = {
        "cls_token": "embeddings.cls_token",
        "positions": "embeddings.position_embeddings",
        "patch_embedding.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embedding.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    if rest in simple:
        return {"encoder." + simple[rest]: tensor}
    _, i, layer, leaf = rest.split(".")
    prefix = f"encoder.encoder.layer.{i}." if scheme == 4 else f"encoder.layers.{i}."
    if layer == "query_key_value":
        names = ("query", "key", "value") if scheme == 4 else ("q_proj", "k_proj", "v_proj")
        inner = "attention.attention." if scheme == 4 else "attention."
        return {f"{prefix}{inner}{n}.{leaf}": t for n, t in zip(names, tensor.chunk(3), strict=True)}
    old = {
        "norm1": ("layernorm_before", "layernorm_before"),
        "norm2": ("layernorm_after", "layernorm_after"),
        "attention_out": ("attention.output.dense", "attention.o_proj"),
        "mlp_in": ("intermediate.dense", "mlp.fc1"),
        "mlp_out": ("output.dense", "mlp.fc2"),
    }[layer][scheme == 5]
    return {f"{prefix}{old}.{leaf}": tensor}


def small(**changes) -> LeWM:
    torch.manual_seed(0)
    config = LeWMConfig(encoder_depth=2, predictor_depth=2, **changes)
    model = LeWM(config)
    for block in model.predictor.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.05)
    return model


def test_encoder_equals_hugging_faces_vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=224,
        patch_size=14,
    )
    torch.manual_seed(0)
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model = LeWM(LeWMConfig()).eval()
    converted = pretrained.convert({f"encoder.{name}": t for name, t in theirs.state_dict().items()})
    checkpoint.load_weights(model.encoder, {n.removeprefix("encoder."): t for n, t in converted.items()}, "ViTModel")
    images = to_network(torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8), 224)
    with torch.inference_mode():
        expected = theirs(images).last_hidden_state
        torch.testing.assert_close(model.encoder.tokens(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encoder(images), expected[:, 0], rtol=1e-4, atol=1e-5)


def _resnet(name: str) -> str:
    """The name under which Hugging Face's ResNet has one of our ResNet-18's weights."""
    first, _, rest = name.partition(".")
    if first in ("stem", "norm"):
        return f"embedder.embedder.{'convolution' if first == 'stem' else 'normalization'}.{rest}"
    index, layer, leaf = rest.split(".", 2)
    block = f"encoder.stages.{int(index) // 2}.layers.{int(index) % 2}"
    if layer == "shortcut":
        return f"{block}.shortcut.{'convolution' if leaf[0] == '0' else 'normalization'}{leaf[1:]}"
    return f"{block}.layer.{int(layer[-1]) - 1}.{'convolution' if layer[:-1] == 'conv' else 'normalization'}.{leaf}"


@pytest.mark.parametrize("training", [True, False])
def test_resnet18_equals_hugging_faces(training):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    torch.manual_seed(0)
    theirs, ours = transformers.ResNetModel(config), ResNet18()
    assert sum(p.numel() for p in ours.parameters()) == 11_176_512
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    tensors = theirs.state_dict()
    checkpoint.load_weights(ours, {name: tensors.pop(_resnet(name)) for name in ours.state_dict()}, "ResNetModel")
    assert not tensors
    images = to_network(torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8), 64)
    with torch.inference_mode():
        expected = theirs.train(training)(images).pooler_output.flatten(1)
        torch.testing.assert_close(ours.train(training)(images), expected, rtol=1e-4, atol=1e-4)


def test_whole_model_equals_the_references():
    transformers = pytest.importorskip("transformers")
    module, reference_loss = reference("wm.lewm.module", "einops"), reference("wm.loss", "einops")
    Reference = reference("wm.lewm.lewm", "einops").LeWM

    torch.manual_seed(0)
    vit = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=224,
        patch_size=14,
    )
    theirs = Reference(
        transformers.ViTModel(vit, add_pooling_layer=False),
        module.Predictor(
            num_frames=3, depth=6, heads=16, mlp_dim=2048, input_dim=192, hidden_dim=192, dim_head=64, dropout=0.1
        ),
        module.Embedder(input_dim=10, emb_dim=192),
        module.MLP(192, 2048, 192, norm_fn=torch.nn.BatchNorm1d),
        module.MLP(192, 2048, 192, norm_fn=torch.nn.BatchNorm1d),
    ).eval()
    for layer in theirs.predictor.transformer.layers:
        torch.nn.init.normal_(layer.adaLN_modulation[-1].weight, std=0.05)
    model = LeWM(LeWMConfig()).eval()
    tensors = pretrained.convert(theirs.state_dict())
    checkpoint.load_weights(
        model, tensors | {"action_mean": torch.zeros(2), "action_std": torch.ones(2)}, "the reference"
    )

    pixels = torch.randint(0, 256, (3, 4, 224, 224, 3), dtype=torch.uint8)
    actions = torch.randn(3, 3, 10)
    images = to_network(pixels.flatten(0, 1), 224).unflatten(0, (3, 4))
    info = theirs.encode({"pixels": images, "action": actions})
    close = {"rtol": 1e-4, "atol": 1e-5}
    latents = model.encode(pixels)
    torch.testing.assert_close(latents, info["emb"], **close)
    predicted = theirs.predict(info["emb"][:, :3], info["act_emb"])
    torch.testing.assert_close(model.predict(latents[:, :3], actions), predicted, **close)

    sigreg = reference_loss.SIGReg()
    torch.manual_seed(1)
    expected = (predicted - info["emb"][:, 1:]).square().mean() + 0.09 * sigreg(info["emb"].transpose(0, 1))
    torch.manual_seed(1)
    loss, _ = model.loss(Batch(pixels, actions))
    torch.testing.assert_close(loss, expected, **close)
    expected.backward()
    loss.backward()
    gradients = pretrained.convert({n: p.grad for n, p in theirs.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )

    plans = torch.randn(1, 4, 5, 10)
    with torch.inference_mode():
        start = {"pixels": images[:1, None, :1].expand(1, 4, 1, 3, 224, 224)}
        rollout = theirs.rollout(start, plans)["predicted_emb"][:, :, 1:]
        torch.testing.assert_close(model.rollout(latents[:1, :1], plans), rollout, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", [4, 5])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_released_checkpoint_loads_under_both_naming_schemes(tmp_path, scheme, suffix):
    model = small()
    tensors = released(model, scheme)
    if suffix == "pt":
        torch.save(tensors, tmp_path / "weights.pt")
    else:
        checkpoint.save_tensors(tmp_path / "weights.safetensors", tensors)
    config = {"_target_": "os.system", "predictor": {"_target_": "evil.Predictor", "heads": 16, "dim_head": 64}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    agent = LeWMAgent.from_pretrained(tmp_path, "two_room", **STATISTICS, device="cpu")
    assert agent.model.config == model.config
    for name, tensor in agent.model.state_dict().items():
        expected = torch.tensor(STATISTICS[name]) if name in STATISTICS else model.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_paper_sized_checkpoint_has_303_tensors():
    assert len(released(LeWM(LeWMConfig()), 4)) == 303


def write(folder, tensors):
    torch.save(tensors, folder / "weights.pt")
    (folder / "config.json").write_text("{}")


def test_incomplete_checkpoints_are_refused(tmp_path):
    tensors = released(small(), 4)
    write(tmp_path, {k: v for k, v in tensors.items() if k != "encoder.layernorm.bias"})
    with pytest.raises(ValueError, match="missing"):
        LeWMAgent.from_pretrained(tmp_path, "two_room", **STATISTICS)
    write(tmp_path, tensors | {"encoder.pooler.dense.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="pooler"):
        LeWMAgent.from_pretrained(tmp_path, "two_room", **STATISTICS)
    write(tmp_path, {k: v for k, v in tensors.items() if "query" not in k})
    with pytest.raises(ValueError, match="query"):
        LeWMAgent.from_pretrained(tmp_path, "two_room", **STATISTICS)
    write(tmp_path, tensors)
    with pytest.raises(ValueError, match="action_mean"):
        LeWMAgent.from_pretrained(tmp_path, "two_room")


class Evil:
    def __reduce__(self):
        return (print, ("code from the checkpoint ran",))


def test_no_code_of_a_checkpoint_runs(tmp_path, capsys):
    torch.save({"encoder": Evil()}, tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="plain state dict"):
        LeWMAgent.from_pretrained(tmp_path, "two_room", **STATISTICS)
    assert "code from the checkpoint" not in capsys.readouterr().out


def test_missing_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        LeWMAgent.from_pretrained(tmp_path, "two_room", **STATISTICS)
    write(tmp_path, {})
    with pytest.raises(ValueError, match="task="):
        LeWMAgent.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        LeWMAgent.from_pretrained(str(tmp_path / "a" / "b"), "two_room", **STATISTICS)


def test_agents_travel_through_the_hub(tmp_path, monkeypatch):
    """A local stand-in for the Hub: a folder per repository."""
    hub = pytest.importorskip("huggingface_hub")

    class StandIn:
        def create_repo(self, repository, private, exist_ok):
            (tmp_path / repository).mkdir(parents=True)

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            for pattern in allow_patterns:
                for file in Path(folder_path).glob(pattern):
                    shutil.copy(file, tmp_path / repo_id)
            return SimpleNamespace(commit_url=f"hub/{repo_id}")

    monkeypatch.setattr(hub, "HfApi", StandIn)
    monkeypatch.setattr(hub, "snapshot_download", lambda repository, allow_patterns: tmp_path / repository)
    agent = tiny.agent()
    agent.description["model"] = dataclasses.asdict(agent.model.config)
    assert agent.push_to_hub("somebody/two-room") == "hub/somebody/two-room"
    loaded = LeWMAgent.from_pretrained("somebody/two-room", device="cpu")
    assert (loaded.act(tiny.observation()) == agent.act(tiny.observation())).all()
