"""The few pictures of a stored video that a window needs, found by the tables of the mp4 alone.

A demuxer, made for any file, takes as long to open one as to decode five pictures. What `make_shards` writes is plain, one
track of H.264 whose pictures are shown in the order in which they are stored, and needs few of its boxes:

    moov > trak > edts > elst                               which part is shown: all of it
                > mdia > minf > stbl > stsd > avc1 > avcC   what a decoder needs besides pictures
                                     > stsz                 bytes of each picture
                                     > stsc, stco           how many pictures lie together, and where
                                     > stss                 key pictures; all are without it

Source: ISO/IEC 14496-12, sections 8.5 to 8.7; ISO/IEC 14496-15, section 5.4.2.
"""

import struct
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

_PARENTS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl")
_SAMPLE_ENTRY_BYTES = 78
"""Fields of `avc1` before the boxes in it."""
_PICTURE_ORDER = b"ctts"
"""Times at which pictures are shown; a file without it shows them as they are stored."""


class PictureTable(NamedTuple):
    """
    Attributes:
        decoder_config: content of the box `avcC`.
        starts_N, sizes_N: at which byte each picture starts, and how many it has; int64.
        keys_K: ascending indices of the pictures that need no other, the first being 0; int64.
    """

    decoder_config: bytes
    starts_N: np.ndarray
    sizes_N: np.ndarray
    keys_K: np.ndarray


def read_picture_table(data: bytes) -> PictureTable | None:
    """Returns where pictures lie; None for what is not mp4, is cut short, or is less plain than what avff stores."""
    try:
        return _read(data)
    except (struct.error, ValueError, KeyError, IndexError):  # boxes that end early, disagree, or are missing
        return None


def decode_pictures(data: bytes, table: PictureTable, frames: list[int]) -> Iterator[np.ndarray]:
    """Decodes some pictures, and those between them and the key pictures before them.

    Args:
        frames: ascending indices, none twice.

    Yields:
        uint8, (height, width, 3), RGB; to be copied before the next.

    Raises:
        av.FFmpegError: damaged pictures, or too little memory.
        RuntimeError: the decoder left a picture out.
    """
    codec, scaler = av.CodecContext.create("h264", "r"), VideoReformatter()
    codec.extradata = table.decoder_config
    codec.thread_count = 1
    wanted = set(frames)
    packets = (_packet(data, table, number) for number in _needed(table, frames))
    for packet in chain(packets, [None]):  # None: what the decoder has held back
        for picture in codec.decode(packet):
            if picture.pts in wanted:
                wanted.remove(picture.pts)
                rgb = scaler.reformat(picture, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
                lines = np.frombuffer(memoryview(rgb.planes[0]), np.uint8).reshape(rgb.height, -1)
                yield lines[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
    if wanted:
        raise RuntimeError(f"the decoder left out the pictures {sorted(wanted)}")


def _needed(table: PictureTable, frames: list[int]) -> list[int]:
    before = table.keys_K[np.searchsorted(table.keys_K, frames, side="right") - 1]
    return sorted({i for key, frame in zip(before.tolist(), frames, strict=True) for i in range(key, frame + 1)})


def _packet(data: bytes, table: PictureTable, number: int) -> av.Packet:
    start, size = int(table.starts_N[number]), int(table.sizes_N[number])
    packet = av.Packet(data[start : start + size])
    packet.pts = number
    return packet


def _read(data: bytes) -> PictureTable | None:
    boxes = _boxes(data, 0, len(data), {})
    (shown_from,) = struct.unpack_from(">i", boxes[b"elst"], 12)
    if len(boxes[b"elst"]) != 20 or shown_from != 0 or _PICTURE_ORDER in boxes or boxes[b"stsd"][12:16] != b"avc1":
        return None
    config = _boxes(boxes[b"stsd"], 16 + _SAMPLE_ENTRY_BYTES, len(boxes[b"stsd"]), {})[b"avcC"]
    sizes_N = _sizes(boxes[b"stsz"], len(data))
    starts_N = _starts(boxes, sizes_N)
    keys_K = np.arange(len(sizes_N))
    if stss := boxes.get(b"stss"):
        keys_K = _numbers(stss, 8, *struct.unpack_from(">I", stss, 4)) - 1
    if keys_K[0] != 0 or (np.diff(keys_K) < 1).any() or keys_K[-1] >= len(sizes_N):
        return None
    return None if (starts_N + sizes_N).max() > len(data) else PictureTable(config, starts_N, sizes_N, keys_K)


def _sizes(stsz: bytes, num_bytes: int) -> np.ndarray:
    """Returns the bytes of each picture; ValueError where all have one size and `num_bytes` cannot hold them."""
    size_of_all, num_pictures = struct.unpack_from(">II", stsz, 4)
    if size_of_all == 0:
        return _numbers(stsz, 12, num_pictures)
    if size_of_all * num_pictures > num_bytes:
        raise ValueError("stsz")
    return np.full(num_pictures, size_of_all, np.int64)


def _starts(boxes: dict[bytes, bytes], sizes_N: np.ndarray) -> np.ndarray:
    """Returns the byte at which each picture starts; those of a chunk lie one behind the other.

    Raises:
        ValueError: the chunks hold another number of pictures.
    """
    chunk_starts = _numbers(boxes[b"stco"], 8, *struct.unpack_from(">I", boxes[b"stco"], 4))
    (num_runs,) = struct.unpack_from(">I", boxes[b"stsc"], 4)
    first_chunks, pictures_per_chunk, _ = _numbers(boxes[b"stsc"], 8, 3 * num_runs).reshape(num_runs, 3).T
    chunks_per_run = np.diff(first_chunks, append=len(chunk_starts) + 1)
    if first_chunks[0] != 1 or chunks_per_run.min() < 1 or chunks_per_run @ pictures_per_chunk != len(sizes_N):
        raise ValueError("stsc")
    counts = np.repeat(pictures_per_chunk, chunks_per_run)
    before_N = np.cumsum(sizes_N) - sizes_N
    first_of_chunk = np.cumsum(counts) - counts
    return before_N + np.repeat(chunk_starts - before_N[first_of_chunk], counts)


def _boxes(data: bytes, start: int, stop: int, found: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the content of every box by its name, boxes in boxes included.

    Raises:
        ValueError: a name comes twice, as with several tracks, or a box does not end within its parent.
    """
    while start < stop:
        size, name = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= stop - start or name in found:
            raise ValueError(name)
        found[name] = b"" if name == b"mdat" else data[start + 8 : start + size]
        if name in _PARENTS:
            _boxes(data, start + 8, start + size, found)
        start += size
    return found


def _numbers(data: bytes, start: int, count: int) -> np.ndarray:
    """Returns unsigned 32-bit numbers as int64; ValueError where fewer are there."""
    return np.frombuffer(data, ">u4", count, start).astype(np.int64)
