"""Pictures are found by the tables of the mp4 where a demuxer finds them; other files are left to one, or refused."""

import dataclasses
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avff.build_config import PROFILES
from avff.data import decoders
from avff.data.decode import decode_frames
from avff.data.decoders import open_video
from avff.data.mp4 import decode_pictures, read_picture_table
from avff.errors import ShardError
from avff.media.encode import VideoEncoder

NUM_FRAMES = 21


def noise(num_frames, side=64):
    return np.random.default_rng(0).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)


def stored(video_THWC, **changes):
    profile = dataclasses.replace(PROFILES["pretrain"], **changes)
    encoder = VideoEncoder(profile, Fraction(5), *video_THWC.shape[2:0:-1])
    for frame in video_THWC:
        encoder.add(frame)
    return encoder.finish()


def written(container_options=None, codec="libx264", streams=1, **stream_options):
    """A file that avff does not write."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options=container_options or {}) as container:
        every = [container.add_stream(codec, rate=5, options=stream_options) for _ in range(streams)]
        for stream in every:
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(noise(NUM_FRAMES)):
            for stream in every:
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = number, Fraction(1, 5)
                container.mux(stream.encode(frame))
        for stream in every:
            container.mux(stream.encode(None))
    return file.getvalue()


CONTENT = stored(noise(NUM_FRAMES))


@pytest.mark.parametrize(
    ("num_frames", "side", "gop_frames"),
    [(1, 64, 8), (NUM_FRAMES, 64, 1), (NUM_FRAMES, 64, 8), (60, 256, 4)],  # the last: megabytes, in several chunks
)
def test_pictures_lie_where_a_demuxer_finds_them(num_frames, side, gop_frames):
    content = stored(noise(num_frames, side), gop_frames=gop_frames)
    table = read_picture_table(content)
    with av.open(io.BytesIO(content)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert table.decoder_config == container.streams.video[0].codec_context.extradata
    assert table.starts_N.tolist() == [packet.pos for packet in packets]
    assert table.sizes_N.tolist() == [packet.size for packet in packets]
    assert table.keys_K.tolist() == [n for n, packet in enumerate(packets) if packet.is_keyframe]
    assert len(table.keys_K) == -(-num_frames // gop_frames)
    assert (content[table.starts_N[-1] :][: table.sizes_N[-1]]) == bytes(packets[-1])


def test_only_pictures_that_are_needed_are_decoded(monkeypatch):
    table, given_to_decoder = read_picture_table(CONTENT), []
    packet_of = av.Packet

    def packet(content):
        given_to_decoder.append(content)
        return packet_of(content)

    monkeypatch.setattr(av, "Packet", packet)
    assert len(list(decode_pictures(CONTENT, table, [2, 3, 17]))) == 3
    ends = zip(table.starts_N.tolist(), (table.starts_N + table.sizes_N).tolist(), strict=True)
    pictures = [CONTENT[start:stop] for start, stop in ends]
    assert given_to_decoder == [pictures[n] for n in (0, 1, 2, 3, 16, 17)]  # key pictures are 0, 8, 16


OTHERS = {
    "shown in another order": {"bf": "2"},
    "in fragments": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "no H.264": {"codec": "mpeg4"},
    "shown from its third picture on": {"container_options": {"output_ts_offset": "-0.4"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_read_by_decord(name, monkeypatch):
    content = written(**OTHERS[name])
    assert read_picture_table(content) is None
    monkeypatch.delattr(decoders, "decode_pictures")
    found, expected = (np.stack(list(open_video(content, decoder).read([0, 5, 9]))) for decoder in ("pyav", "decord"))
    assert (found == expected).all()


def test_two_tracks_are_no_plain_file():
    assert read_picture_table(written(bf="0")) is not None
    assert read_picture_table(written(bf="0", streams=2)) is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_tables_end_in_a_table_within_the_file_or_in_none(data):
    start = CONTENT.index(b"moov")
    damaged = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(start, len(CONTENT) - 4))
        damaged[place : place + 4] = data.draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1"]))
    table = read_picture_table(bytes(damaged))
    if table:
        assert table.starts_N.min() >= 0 and (table.starts_N + table.sizes_N).max() <= len(CONTENT)
        assert table.keys_K[0] == 0 and table.keys_K.max() < len(table.starts_N) == len(table.sizes_N)


@pytest.mark.parametrize("length", [0, 7, 8, 100, len(CONTENT) - 1])
def test_what_is_cut_short_has_no_table(length):
    assert read_picture_table(CONTENT[:length]) is None


def test_a_picture_that_does_not_come_out_is_an_error():
    table = read_picture_table(CONTENT)
    emptied = bytearray(CONTENT)
    start, size = int(table.starts_N[3]), int(table.sizes_N[3])
    emptied[start : start + size] = (size - 4).to_bytes(4, "big") + bytes([12]) + bytes(size - 5)  # a unit of filler
    with pytest.raises(ShardError, match=r"a.tar: video cannot be decoded; rebuild this shard"):
        decode_frames(bytes(emptied), np.arange(NUM_FRAMES), NUM_FRAMES, "a.tar", "pyav")
