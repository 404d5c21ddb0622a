"""Lossless frames that can be read individually: zstd with a key frame of the episode as dictionary.

A key frame is an ordinary zstd frame; each other one is compressed against its key frame's raw bytes (a raw-content
dictionary), so static content takes almost no space. Reading a frame decodes at most two: the key frame and itself.
A key frame is used for the whole episode (its first frame) or, if much of the image moves, for a segment (the middle
one). Each frame carries zstd's checksum of its content (XXH64, low 32 bits), which readers verify; only training
clips at full size skip this, since it takes a third of their time (`python -m collect verify` checks all).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from lewm_gym.data.episode import FRAME_SHAPE, Episode
from lewm_gym.data.zstd import make_decompressor

FRAME_BYTES = int(np.prod(FRAME_SHAPE))
_NAME = "zstd-key-frame"
_REMEDY = "update lewm-gym, or collect the dataset again"


@dataclass(frozen=True)
class FrameCodec:
    """How frames are stored; recorded in every shard.

    Attributes:
        layout: Order of a stored frame's axes, "hwc" or "chw".
        segment_frames: Frames that share a key frame, the middle one of them; 0 means the episode's first serves all.
        level: zstd's compression level; the reader does not need it.
        name: Identifies the scheme of this module.
    """

    layout: str = "hwc"
    segment_frames: int = 0
    level: int = 3
    name: str = _NAME

    def __post_init__(self) -> None:
        if self.name != _NAME or self.layout not in ("hwc", "chw") or self.segment_frames < 0:
            raise ValueError(f"unknown name or layout, or a negative number in {asdict(self)}")

    def as_json(self) -> dict[str, Any]:
        """Returns the codec as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> FrameCodec:
        """Returns the codec recorded in a file.

        Raises:
            ValueError: If this version cannot read it.
        """
        try:
            if unknown := sorted(set(record) - set(FrameCodec.__dataclass_fields__)):
                raise ValueError(f"unknown fields {', '.join(unknown)}")
            return msgspec.convert(record, FrameCodec)
        except (msgspec.ValidationError, ValueError) as error:
            raise ValueError(f"this version cannot read frames stored as {record} ({error}): {_REMEDY}") from None

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of a frame as it is stored."""
        height, width, channels = FRAME_SHAPE
        return FRAME_SHAPE if self.layout == "hwc" else (channels, height, width)

    def key_step(self, step: int, length: int) -> int:
        """Returns the step whose frame is the key of `step` in an episode of `length` frames."""
        if not self.segment_frames:
            return 0
        start = step - step % self.segment_frames
        return min(start + self.segment_frames // 2, length - 1)


#: Chosen by measurement, see docs/datasets.md: the cheapest that keeps within the size wanted.
CODECS: dict[str, FrameCodec] = {
    "two_room": FrameCodec(layout="chw", level=1),
    "pusht": FrameCodec(layout="hwc", segment_frames=16, level=10),
    "reacher": FrameCodec(layout="hwc", level=6),
    "cube": FrameCodec(layout="hwc", level=9),
}


def codec_for(task: str) -> FrameCodec:
    """Returns the codec for collecting `task`."""
    return CODECS.get(task, FrameCodec())


class EpisodeEncoder:
    """Compresses the frames of one episode in order; holds back at most half a segment."""

    def __init__(self, codec: FrameCodec) -> None:
        self._codec = codec
        self._pending: list[memoryview] = []
        self._compressor: zstandard.ZstdCompressor | None = None  # with the present key as dictionary
        self._frames: list[bytes] = []

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Compresses the next frame, (224, 224, 3) uint8."""
        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise ValueError(f"pixels: expected {FRAME_SHAPE} uint8, got {frame.shape} {frame.dtype}")
        step, segment = len(self._frames) + len(self._pending), self._codec.segment_frames
        stored = frame if self._codec.layout == "hwc" else frame.transpose(2, 0, 1)
        # a copy where segments wait for their key, since an environment may draw into the same array again
        raw = (stored.copy() if segment else np.ascontiguousarray(stored)).data
        if segment and step % segment == 0:
            self._compressor = None
        self._pending.append(raw)
        if self._compressor is not None or len(self._pending) > segment // 2:
            self._compress_pending()

    def finish(self) -> list[bytes]:
        """Returns all frames, compressed."""
        if self._pending:
            self._compress_pending()
        return self._frames

    def _compress_pending(self) -> None:
        """Compresses the pending frames; the last one becomes the key if the segment has none."""
        key = None
        if self._compressor is None:
            key = self._make_compressor(None).compress(self._pending[-1])
            self._compressor = self._make_compressor(bytes(self._pending[-1]))
        others = self._pending if key is None else self._pending[:-1]
        self._frames += [self._compressor.compress(raw) for raw in others]
        self._frames += [] if key is None else [key]
        self._pending = []

    def _make_compressor(self, key: bytes | None) -> zstandard.ZstdCompressor:
        dictionary = key and zstandard.ZstdCompressionDict(key, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self._codec.level,
            source_size=FRAME_BYTES,
            dict_size=FRAME_BYTES if key else 0,
            write_checksum=True,
            write_content_size=True,
        )
        return zstandard.ZstdCompressor(dict_data=dictionary or None, compression_params=parameters)


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode ready to be written: `Episode` with its stored frames compressed (None without frames)."""

    states: Episode
    frames: list[bytes] | None


def encode(episode: Episode, codec: FrameCodec) -> EncodedEpisode:
    """Returns a whole episode with its frames compressed."""
    if episode.pixels is None:
        return EncodedEpisode(episode, None)
    encoder = EpisodeEncoder(codec)
    for frame in episode.pixels:
        encoder.add(frame)
    return EncodedEpisode(episode, encoder.finish())


def pixels_hash(frames: list[Any]) -> str:
    """Returns the hash of an episode's decoded pixels from its compressed frames.

    BLAKE2b-128 over the checksums of the frames' contents: it depends on the pixels (in the order stored), not on how
    they are compressed, and costs nothing, whereas SHA-256 of raw pixels would take a third of the time of collecting.
    """
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(frame[-4:])
    return digest.hexdigest()


class FrameDecoder:
    """Decodes single frames, keeping the most recently used keys. Thread-safe.

    Args:
        max_cached: Keys remembered by each thread; one takes 0.15 MB.
    """

    def __init__(self, max_cached: int = 256) -> None:
        self._max_cached = max_cached
        self._local = threading.local()

    def decode_into(
        self,
        out: NDArray[np.uint8],
        name: Any,
        key: memoryview | None,
        frames: Iterable[memoryview],
        check: bool = True,
    ) -> None:
        """Decodes frames that share a key.

        Args:
            out: Output: contiguous uint8 of the frames' stored shapes, one after another.
            name: Identifies the key frame in the cache.
            key: The key frame, compressed; None if only the key frame is requested.
            frames: The requested frames, compressed; the key frame may be among them.
            check: Whether to verify the checksums.

        Raises:
            ValueError: If the data are damaged.
        """
        local = self._local
        if not hasattr(local, "keys"):
            local.keys, local.zstd = OrderedDict(), make_decompressor()
        raw = None
        if key is not None:
            raw = local.keys.pop(name, None)
            if raw is None:
                raw = self._fresh(local.keys)
                local.zstd.into(raw, key, None, check)
            local.keys[name] = raw
        local.zstd.into(out, b"".join(frames), raw, check)

    def _fresh(self, keys: OrderedDict[Any, NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Returns memory for a key frame: that of an evicted one, since new pages cost as much as decoding."""
        return keys.popitem(last=False)[1] if len(keys) >= self._max_cached else np.empty(FRAME_BYTES, np.uint8)
