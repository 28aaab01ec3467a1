"""Messages between our own processes: bounded, typed, and cut without waiting."""

from multiprocessing import Pipe

import msgspec
import pytest

from intermission.supervisor.process import wire


def test_frames_are_those_of_a_connection() -> None:
    """What `Connection.send_bytes` writes is cut into the same payloads, whatever the pieces it arrives in."""
    near, far = Pipe()
    payloads = [b"", b"x", b"y" * 20_000, b"z" * 100]
    for payload in payloads:
        far.send_bytes(payload)
    far.close()
    import os

    stream = b""
    while chunk := os.read(near.fileno(), 65536):
        stream += chunk
    near.close()
    for size in (1, 3, 7, 5000, len(stream)):
        frames = wire.Frames(1 << 20)
        cut = [p for i in range(0, len(stream), size) for p in frames.feed(stream[i : i + size])]
        assert cut == payloads


def test_what_we_write_a_connection_reads() -> None:
    """The other direction: `frame` is read by `Connection.recv_bytes`."""
    near, far = Pipe()
    import os

    os.write(near.fileno(), wire.frame(wire.encode(wire.Committed(7))))
    assert wire.decode_request(far.recv_bytes(1000)) == wire.Committed(7)
    near.close()
    far.close()


def test_a_frame_over_the_limit_is_refused_before_it_arrives() -> None:
    """The length alone is enough: nothing of that size is ever buffered."""
    with pytest.raises(wire.FrameError, match="2147483647 bytes"):
        list(wire.Frames(1000).feed(b"\x7f\xff\xff\xff"))


def test_half_a_frame_is_kept_for_later() -> None:
    """A child that is stopped in the middle of a message holds nobody up."""
    frames = wire.Frames(1000)
    assert list(frames.feed(b"\x00\x00")) == []
    assert list(frames.feed(b"\x00\x03ab")) == []
    assert list(frames.feed(b"c\x00")) == [b"abc"]


@pytest.mark.parametrize(
    "payload", [b"", b"\x00", b"garbage", b"\x91\xa9PauseRequest", b"\x92\xa8Stopping\xa1x", b"\xc1"]
)
def test_what_is_no_report_is_refused(payload: bytes) -> None:
    """Only the reports of a child decode as such: no garbage, no other direction's message, no wrong type."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        wire.decode_report(payload)


@pytest.mark.parametrize(
    "report",
    [
        wire.Ready(),
        wire.Dirty(),
        wire.CommitRequest(3),
        wire.Stopping(4),
        wire.Completed('{"a": 1}'),
        wire.Errored("exception", "ValueError", "no", "trace", None, final=True),
    ],
)
def test_reports_arrive_as_they_were_sent(report: wire.Report) -> None:
    """Each report survives the way."""
    assert wire.decode_report(wire.encode(report)) == report
