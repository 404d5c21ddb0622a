"""ResNet-18 (arXiv 1512.03385, table 1): the encoder of one of LeWM's ablations, trained from scratch.

Its batch normalisation is that of nn/distributed.py, so it works across processes, also on the CPU.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lewm_gym.nn.distributed import BatchNorm2d

WIDTHS = (64, 128, 256, 512)  # of the four stages, two blocks each


class ResNet18(nn.Module):
    """Encodes images (n, 3, size, size) as (n, 512), averaged over the last map."""

    output_width = WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.norm = BatchNorm2d(WIDTHS[0])
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        blocks, before = [], WIDTHS[0]
        for width in WIDTHS:
            blocks += [BasicBlock(before, width, stride=1 if width == before else 2), BasicBlock(width, width)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, 512)."""
        return self.blocks(self.pool(F.relu(self.norm(self.stem(images))))).mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution if shapes differ."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, kernel_size=1, stride=stride, bias=False), BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, width, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
