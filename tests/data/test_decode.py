"""Decoding on a machine that has no memory or threads to spare: good bytes are not called bad."""

import errno
import subprocess
import sys

import av
import pytest

from avff.data.decode import decode_sound
from avff.errors import ReadError

SCRIPT = """
import os, resource, sys
import numpy as np
from avff.data.decode import decode_frames
from avff.data.decoders import require_decoder
from avff.errors import ShardError

require_decoder("decord")  # imports it, while its files may be read
content = sys.stdin.buffer.read()
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    os.setuid(65534)  # the limit does not bind root
try:
    decode_frames(content, np.arange(5), 16, "a.tar: face0.mp4", "decord")
except ShardError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_threads_that_run_out_are_not_blamed_on_the_video(make_sample):
    content = make_sample("a").members["face0.mp4"]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=True, input=content, stdout=subprocess.PIPE, timeout=600)
    assert done.stdout.decode().strip() == (
        "ReadError a.tar: face0.mp4: video cannot be decoded on this machine now: Resource temporarily unavailable"
    )


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN])
@pytest.mark.parametrize(("place", "num_samples"), [("avff.data.flac.decode_window", 51200), ("av.open", 51201)])
def test_what_ffmpeg_does_not_get_is_not_blamed_on_the_sound(make_sample, monkeypatch, place, num_samples, code):
    content = make_sample("a").members["flac"]
    # Memory that really runs out does so elsewhere each time.
    monkeypatch.setattr(place, lambda *_, **__: av.error.err_check(-code))
    with pytest.raises(ReadError, match=rf"^flac: sound cannot be decoded on this machine now: .*Errno {code}\b"):
        decode_sound(content, num_samples, 16000, "flac")
