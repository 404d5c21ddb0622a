"""Lossless frames, each readable by itself: zstd with the episode's first frame as dictionary.

The first frame of an episode is an ordinary zstd frame; each later one is compressed against the first frame's
raw bytes (a raw-content dictionary), so that whatever stands still costs nothing. A reader of step t decodes two
frames at most: the first and its own. Each carries zstd's checksum of its content (XXH64, low 32 bits), which
every read verifies.

Bytes are stored channel-first: measured on Two-Room, 2.4 kB and 26 us to decode against 3.2 kB and 40 us.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from lewm_gym.data.episode import FRAME_SHAPE

FRAME_BYTES = int(np.prod(FRAME_SHAPE))
CHANNEL_FIRST = (FRAME_SHAPE[2], *FRAME_SHAPE[:2])


@dataclass(frozen=True)
class FrameCodec:
    """How frames are compressed; recorded in every shard.

    Attributes:
        level: zstd's compression level; the reader does not need it.
        name: Identifies the scheme of this module.
        layout: Order of a stored frame's axes.
    """

    level: int = 3
    name: str = "zstd-first-frame"
    layout: str = "chw"

    def as_json(self) -> dict[str, Any]:
        """Returns the codec as a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> FrameCodec:
        """Returns the codec recorded in a file.

        Raises:
            ValueError: If this version cannot read it.
        """
        known = FrameCodec()
        if record.get("name") != known.name or record.get("layout") != known.layout:
            raise ValueError(
                f"frames are stored as {record.get('name')!r} {record.get('layout')!r}; this version reads "
                f"{known.name!r} {known.layout!r} only: update lewm-gym"
            )
        return FrameCodec(level=int(record["level"]))


#: Levels measured per task: the cheapest that stays within the size wanted (docs/datasets.md).
CODECS: dict[str, FrameCodec] = {"two_room": FrameCodec(level=1)}


def codec_for(task: str) -> FrameCodec:
    """Returns the codec in which the frames of `task` are collected."""
    return CODECS.get(task, FrameCodec())


class EpisodeEncoder:
    """Compresses the frames of one episode in order."""

    def __init__(self, codec: FrameCodec) -> None:
        self._codec = codec
        self._compressor: zstandard.ZstdCompressor | None = None
        self._checksums = hashlib.blake2b(digest_size=16)
        self.frames: list[bytes] = []

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Compresses the next frame, (224, 224, 3) uint8."""
        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise ValueError(f"pixels: expected {FRAME_SHAPE} uint8, got {frame.shape} {frame.dtype}")
        raw = np.ascontiguousarray(frame.transpose(2, 0, 1)).data
        if self._compressor is None:
            data = self._make_compressor(None).compress(raw)
            self._compressor = self._make_compressor(bytes(raw))
        else:
            data = self._compressor.compress(raw)
        self.frames.append(data)
        self._checksums.update(data[-4:])

    def _make_compressor(self, reference: bytes | None) -> zstandard.ZstdCompressor:
        dictionary = reference and zstandard.ZstdCompressionDict(reference, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self._codec.level,
            source_size=FRAME_BYTES,
            dict_size=FRAME_BYTES if reference else 0,
            write_checksum=True,
            write_content_size=True,
        )
        return zstandard.ZstdCompressor(dict_data=dictionary or None, compression_params=parameters)

    def pixels_hash(self) -> str:
        """Returns a hash of the decoded pixels so far; see `pixels_hash`."""
        return self._checksums.hexdigest()


def pixels_hash(frames: list[Any]) -> str:
    """Returns the hash of an episode's decoded pixels from its compressed frames.

    BLAKE2b-128 over the frames' content checksums: it depends on the pixels alone, not on how they are compressed,
    and costs nothing, whereas SHA-256 of the raw pixels would take a third of the time of collecting them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(frame[-4:])
    return digest.hexdigest()


class FrameDecoder:
    """Decodes single frames, keeping the dictionaries of the most recently used episodes. Thread-safe.

    Args:
        max_cached: Episodes remembered by each thread; one takes about 0.3 MB.
    """

    def __init__(self, max_cached: int = 256) -> None:
        self._max_cached = max_cached
        self._local = threading.local()

    def decode_into(self, planes: NDArray[np.uint8], key: Any, first: memoryview, frame: memoryview | None) -> None:
        """Decodes one frame into `planes`, (3, 224, 224) uint8, contiguous.

        Args:
            planes: Where to.
            key: Names the episode, for the cache.
            first: The episode's first frame, compressed.
            frame: The frame wanted, compressed; None for the first itself.

        Raises:
            ValueError: If the data are damaged.
        """
        destination = planes.data.cast("B")
        cache = getattr(self._local, "cache", None)
        if cache is None:
            cache = self._local.cache = OrderedDict()
            self._local.plain = zstandard.ZstdDecompressor()
        try:
            if frame is None:
                _decompress(self._local.plain, first, destination)
                return
            decompressor = cache.get(key)
            if decompressor is None:
                decompressor = cache[key] = self._with_dictionary(first)
                if len(cache) > self._max_cached:
                    cache.popitem(last=False)
            else:
                cache.move_to_end(key)
            _decompress(decompressor, frame, destination)
        except zstandard.ZstdError as error:
            raise ValueError(f"a compressed frame is damaged ({error})") from None

    def _with_dictionary(self, first: memoryview) -> zstandard.ZstdDecompressor:
        reference = self._local.plain.decompress(first, max_output_size=FRAME_BYTES)
        dictionary = zstandard.ZstdCompressionDict(reference, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=dictionary)


def _decompress(decompressor: zstandard.ZstdDecompressor, data: memoryview, destination: memoryview) -> None:
    # readinto writes where the frame belongs; decompress() would allocate, and copying costs as much as decoding
    with decompressor.stream_reader(data) as reader:
        if reader.readinto(destination) != FRAME_BYTES:
            raise ValueError("a compressed frame is damaged (it is too short)")
