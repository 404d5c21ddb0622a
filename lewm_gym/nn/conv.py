"""A small convolutional encoder, for machines without a GPU (the paper finds LeWM agnostic to the encoder)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lewm_gym.nn.distributed import BatchNorm2d


class ConvEncoder(nn.Module):
    """Encodes images (n, 3, size, size) as (n, width).

    The first stage cuts the image into square patches, each later one halves the map with 3x3 convolutions;
    batch normalisation and ReLU follow each. The last map is flattened, not pooled, to preserve positions.

    Args:
        image_size: Height and width of the images, px; a multiple of patch_size.
        channels: Channels after each stage.
        width: Width of the output.
        patch_size: Height and width of the first stage's patches, px.
    """

    def __init__(
        self,
        image_size: int = 56,
        channels: tuple[int, ...] = (64, 128, 128),
        width: int = 256,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        if image_size % patch_size or not channels:
            raise ValueError(
                f"image_size must be a multiple of the convolutions' patches of {patch_size} px and channels "
                f"not empty, got {image_size} and {channels}"
            )
        self.output_width = width
        stages: list[nn.Module] = [nn.Conv2d(3, channels[0], kernel_size=patch_size, stride=patch_size, bias=False)]
        side = image_size // patch_size
        for before, after in zip(channels, channels[1:], strict=False):
            stages += [BatchNorm2d(before), nn.ReLU(inplace=True)]
            stages.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False))
            side = (side + 1) // 2
        self.stages = nn.Sequential(*stages, BatchNorm2d(channels[-1]), nn.ReLU(inplace=True))
        self.out = nn.Linear(channels[-1] * side * side, width)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, width)."""
        maps = self.stages(images)
        # The last map is read in the order it lies in, height-width-channel, and so come the gradients back; they need
        # not be reordered then (4 % of the encoder's forward and backward pass on a CPU).
        weight = self.out.weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, self.out.bias)
