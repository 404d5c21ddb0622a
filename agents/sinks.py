"""Log sinks besides the run folder's `log.jsonl`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from lewm_gym.training import Sink


def tensorboard(folder: Path) -> Sink:
    """Returns a sink that writes TensorBoard event files into `folder`/tensorboard.

    Raises:
        ImportError: If tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("--tensorboard needs: pip install 'lewm-gym[logging]'") from None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def sink(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return sink


def weights_and_biases(project: str, folder: Path, description: dict[str, Any]) -> Sink:
    """Returns a sink that logs to Weights & Biases (offline if WANDB_MODE says so), its files in `folder`/wandb.

    A resumed run continues the same W&B run, whose id is stored in `folder`/wandb-id.

    Raises:
        ImportError: If wandb is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ImportError("--wandb needs: pip install 'lewm-gym[logging]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "wandb-id"
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex[:8])
    run = wandb.init(
        project=project, name=folder.name, id=kept.read_text(), dir=folder, config=description, resume="allow"
    )

    def sink(step: int, values: dict[str, float]) -> None:
        run.log(values, step=step)

    return sink
