"""The few frames of a stored FLAC that a window needs, found without reading the others.

Every FLAC frame stands for itself. Where all but the last have the same number of samples, the header of frame n is
known to the byte, CRC-8 included, so that the frames [a, b) lie between two byte strings that can be searched for:

    fLaC | STREAMINFO | other metadata | frame 0 | ... | frame a | ... | frame b | ... | last, shorter frame

Source: RFC 9639, sections 8.1 (metadata), 8.2 (STREAMINFO) and 9.1 (frame header).
"""

from typing import NamedTuple

import av
import numpy as np

_INFO = slice(8, 42)
_FIXED_BLOCK_SIZE = b"\xff\xf8"
_SIZE_AFTER_NUMBER = {6: 1, 7: 2}
"""Codes of block sizes that stand after the frame number, and in how many bytes."""
_LAST_PLAIN_RATE_CODE = 11


class Layout(NamedTuple):
    """How the frames of a file lie.

    Attributes:
        stream_info: STREAMINFO, what a decoder needs besides frames.
        num_channels, bits, sample_rate_hz, num_samples: of the sound.
        block_samples: of every frame but the last.
        first_frame: byte at which frame 0 starts.
        before_number, after_number: bytes of every frame header but the last, around the frame number.
    """

    stream_info: bytes
    num_channels: int
    bits: int
    sample_rate_hz: int
    num_samples: int
    block_samples: int
    first_frame: int
    before_number: bytes
    after_number: bytes

    def header(self, number: int) -> bytes:
        """Returns the bytes with which a frame starts, if it has `block_samples`."""
        content = self.before_number + _coded(number) + self.after_number
        return content + bytes([_crc8(content)])


def read_layout(data: bytes) -> Layout | None:
    """Returns the layout; None for what is not FLAC, or has frames of various lengths."""
    info, first = data[_INFO], _first_frame(data)
    before, rest = data[first : first + 4], data[first + 5 : first + 7]  # the frame number, 0, is one byte
    if data[:4] != b"fLaC" or len(rest) < 2:
        return None
    smallest, largest = int.from_bytes(info[:2]), int.from_bytes(info[2:4])
    packed = int.from_bytes(info[10:18])
    if smallest != largest or before[:2] != _FIXED_BLOCK_SIZE or before[2] & 0xF > _LAST_PLAIN_RATE_CODE:
        return None
    return Layout(
        stream_info=info,
        num_channels=(packed >> 41 & 0x7) + 1,
        bits=(packed >> 36 & 0x1F) + 1,
        sample_rate_hz=packed >> 44,
        num_samples=packed & 0xFFFFFFFFF,
        block_samples=largest,
        first_frame=first,
        before_number=before,
        after_number=rest[: _SIZE_AFTER_NUMBER.get(before[2] >> 4, 0)],
    )


def decode_window(data: bytes, layout: Layout, start: int, stop: int) -> np.ndarray | None:
    """Returns samples [start, stop) of mono sound, int16; None where its frames are not where the layout has them."""
    block = layout.block_samples
    first, after, num_whole = start // block, -(-stop // block), layout.num_samples // block
    if first >= num_whole:
        return None
    begin = data.find(layout.header(first), layout.first_frame)
    end = data.find(layout.header(after), begin) if after < num_whole else len(data)
    if begin < 0 or end < begin or data.rfind(layout.header(num_whole - 1)) < begin:  # the last: is it all there?
        return None
    codec = av.CodecContext.create("flac", "r")
    codec.extradata = layout.stream_info
    codec.thread_count = 1
    codec.options = {"err_detect": "crccheck+explode"}
    try:
        frames = codec.decode(av.Packet(data[begin:end]))  # goes on to the end of a packet, however many it holds
    except av.error.InvalidDataError:  # such as samples that look like a header
        return None
    stop_of_frames = after * block if after < num_whole else layout.num_samples
    if sum(frame.samples for frame in frames) != stop_of_frames - first * block:
        return None
    # One plane of int16, whatever a decoder calls its form; `to_ndarray` takes longer than decoding.
    samples_N = np.concatenate(
        [np.frombuffer(memoryview(frame.planes[0]), np.int16, frame.samples) for frame in frames]
    )
    return samples_N[start - first * block : stop - first * block]


def _first_frame(data: bytes) -> int:
    """Returns the byte after the metadata blocks."""
    position, is_last = 4, False
    while not is_last and position < len(data):
        is_last = data[position] >= 0x80
        position += 4 + int.from_bytes(data[position + 1 : position + 4])
    return position


def _coded(number: int) -> bytes:
    """Returns a frame number in up to four bytes, which FLAC codes as UTF-8 does characters."""
    return chr(number).encode("utf-8", "surrogatepass")


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc
