"""Reading the released LeWM checkpoints: a state dict and a config.json of `stable-worldmodel`, converted to our names.

No class named in the configuration is instantiated, and the weights are read with `weights_only`, so no code in
a downloaded file is executed. Sizes come from the tensors; the configuration only adds what shapes cannot show (heads).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewm_gym import checkpoint
from lewm_gym.files import read_json

SHIPPED = Path(__file__).parent / "shipped"  # the agents that ship with the package, a folder each (agents/shipping.py)

#: The encoder's names, in the scheme of transformers 4 (the released files) and in that of transformers 5.
_VIT_NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "positions"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embedding.\1"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"layers\.(\d+)\.attention\.(q|k|v)_proj\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attention_out.\2"),
    (r"layers\.(\d+)\.attention\.o_proj\.(weight|bias)", r"blocks.\1.attention_out.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp_in.\2"),
    (r"layers\.(\d+)\.mlp\.fc1\.(weight|bias)", r"blocks.\1.mlp_in.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.mlp_out.\2"),
    (r"layers\.(\d+)\.mlp\.fc2\.(weight|bias)", r"blocks.\1.mlp_out.\2"),
)
_BATCH_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_BLOCK = r"predictor\.transformer\.layers\.(\d+)"
_NAMES = (
    *((rf"encoder\.{old}", f"encoder.{new}") for old, new in _VIT_NAMES),
    *(
        rule
        for old, new in (("projector", "projector"), ("pred_proj", "prediction_projector"))
        for rule in (
            (rf"{old}\.net\.0\.(weight|bias)", rf"{new}.linear_in.\1"),
            (rf"{old}\.net\.1\.{_BATCH_NORM}", rf"{new}.norm.\1"),
            (rf"{old}\.net\.3\.(weight|bias)", rf"{new}.linear_out.\1"),
        )
    ),
    (r"action_encoder\.patch_embed\.(weight|bias)", r"action_encoder.smooth.\1"),
    (r"action_encoder\.embed\.0\.(weight|bias)", r"action_encoder.linear_in.\1"),
    (r"action_encoder\.embed\.2\.(weight|bias)", r"action_encoder.linear_out.\1"),
    (r"predictor\.pos_embedding", "predictor.positions"),
    (r"predictor\.transformer\.norm\.(weight|bias)", r"predictor.norm.\1"),
    (rf"{_BLOCK}\.attn\.norm\.(weight|bias)", r"predictor.blocks.\1.attention.norm.\2"),
    (rf"{_BLOCK}\.attn\.to_qkv\.weight", r"predictor.blocks.\1.attention.query_key_value.weight"),
    (rf"{_BLOCK}\.attn\.to_out\.0\.(weight|bias)", r"predictor.blocks.\1.attention.out.0.\2"),
    (rf"{_BLOCK}\.mlp\.net\.([014])\.(weight|bias)", r"predictor.blocks.\1.mlp.\2.\3"),
    (rf"{_BLOCK}\.adaLN_modulation\.1\.(weight|bias)", r"predictor.blocks.\1.modulation.\2"),
)  # fmt: skip


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a reference state dict under our names, with queries, keys and values joined.

    Raises:
        ValueError: If a tensor has a name that the reference's LeWM has not.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        new = _rename(name)
        if new is None:
            unknown.append(name)
        else:
            renamed[new] = tensor
    if unknown:
        raise ValueError(f"not a LeWM checkpoint: {len(unknown)} tensors with unknown names, such as {unknown[:3]}")
    smooth = "action_encoder.smooth.weight"
    if smooth in renamed:
        renamed[smooth] = renamed[smooth].squeeze(-1)  # a 1x1 convolution is a linear map
    return _join_attention(renamed)


def _rename(name: str) -> str | None:
    for pattern, replacement in _NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def _join_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with each block's query, key and value stacked into one."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(encoder\.blocks\.\d+)\.(q|k|v)(?:uery|ey|alue)?\.(weight|bias)", name)
        if match:
            parts.setdefault(f"{match[1]}.query_key_value.{match[3]}", {})[match[2]] = tensor
        else:
            joined[name] = tensor
    for name, part in parts.items():
        if set(part) != set("qkv"):
            raise ValueError(f"{name}: the checkpoint has {sorted(part)} of query, key and value only")
        joined[name] = torch.cat([part[which] for which in "qkv"])
    return joined


def infer_config(tensors: dict[str, Tensor], settings: dict[str, Any], action_size: int) -> dict[str, Any]:
    """Returns the `LeWMConfig` of converted tensors by its fields; `settings` is the released config.json.

    Raises:
        ValueError: If the tensors cannot be LeWM's, or do not fit the action size.
    """
    try:
        width, _, patch_size, _ = tensors["encoder.patch_embedding.weight"].shape
        n_patches = tensors["encoder.positions"].shape[1] - 1
        block_size = tensors["action_encoder.smooth.weight"].shape[1]
        heads_width = tensors["predictor.blocks.0.attention.query_key_value.weight"].shape[0] // 3
        _, context, latent_size = tensors["predictor.positions"].shape
        mlp_width = tensors["predictor.blocks.0.mlp.1.weight"].shape[0]
        projection_width = tensors["projector.linear_in.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"not a LeWM checkpoint: tensor {error} is missing") from None
    if block_size % action_size:
        raise ValueError(f"the checkpoint's action blocks have {block_size} numbers, not a multiple of {action_size}")
    predictor = settings.get("predictor", {})
    head_width = int(predictor.get("dim_head", 64))
    return dict(
        action_size=action_size,
        frame_skip=block_size // action_size,
        context=context,
        image_size=patch_size * round(n_patches**0.5),
        encoder_width=width,
        encoder_depth=_depth(tensors, "encoder"),
        encoder_heads=width // 64,
        patch_size=patch_size,
        latent_size=latent_size,
        projection_width=projection_width,
        predictor_depth=_depth(tensors, "predictor"),
        predictor_heads=int(predictor.get("heads", heads_width // head_width)),
        predictor_head_width=head_width,
        predictor_mlp_width=mlp_width,
        dropout=float(predictor.get("dropout", 0.1)),
    )


def _depth(tensors: dict[str, Tensor], part: str) -> int:
    return 1 + max(int(m[1]) for name in tensors if (m := re.match(rf"{part}\.blocks\.(\d+)\.", name)))


def shipped_names() -> tuple[str, ...]:
    """Returns the names of the agents that ship with the package."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{checkpoint.DESCRIPTION}")))


def locate(folder: str | Path) -> Path:
    """Returns a local folder: that of a pretrained agent, the given one, or a downloaded repository of the Hub.

    Args:
        folder: The name of a pretrained agent (for a folder of that name: `./name`), a folder, or `user/name`
            on the Hugging Face Hub.

    Raises:
        FileNotFoundError: If there is none of these.
        ImportError: If the Hub is asked for and `huggingface_hub` is not installed.
    """
    if isinstance(folder, str) and folder in shipped_names():
        return SHIPPED / folder
    return Path(folder) if Path(folder).is_dir() else _download(str(folder))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the state dict and the configuration of a released checkpoint.

    Args:
        path: A folder with one `.pt` or `.safetensors` file and `config.json`.

    Raises:
        FileNotFoundError: If a file is missing in it.
        ValueError: If a file is damaged or would execute code when read.
    """
    files = sorted([*path.glob("*.pt"), *path.glob("*.safetensors")])
    if len(files) != 1 or not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} must hold config.json and one .pt or .safetensors file, found {[f.name for f in files]}"
        )
    settings = read_json(path / "config.json", "download it again")
    if files[0].suffix == ".safetensors":
        return checkpoint.load_tensors(files[0], foreign=True), settings
    try:
        tensors = torch.load(files[0], map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file provokes
        raise ValueError(f"{files[0]} is not a plain state dict ({str(error).splitlines()[0]})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{files[0]} is not a plain state dict")
    return tensors, settings


def _download(repository: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise FileNotFoundError(
            f"there is no folder {repository}; agents that ship are: {', '.join(shipped_names())}; "
            "an id on the Hugging Face Hub has a slash (user/name)"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ImportError(
            f"there is no folder {repository}; to fetch it from the Hugging Face Hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.pt", "*.safetensors", "*.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"cannot fetch {repository} from the Hugging Face Hub: {error}") from None


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Uploads the files of a run folder that acting needs to the Hugging Face Hub; returns the address.

    Raises:
        ImportError: If `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ImportError("push_to_hub needs: pip install huggingface_hub") from None
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    files = [checkpoint.DESCRIPTION, checkpoint.WEIGHTS, "curves.png"]
    commit = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=files)
    return str(commit.commit_url)
