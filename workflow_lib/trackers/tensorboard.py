"""TensorBoard: `tracking/tensorboard/<experiment>/<run>/`, one events file a run."""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

from workflow_lib.files import write_atomic
from workflow_lib.results import summaries
from workflow_lib.tracking import Curve, Point, Tracker

REQUIRES = ("tensorboard",)


def open_tracker(folder: Path) -> Tracker:
    """Return the tracker of the events files in the folder."""
    return TensorBoard(folder)


@final
class TensorBoard(Tracker):
    """The bytes of an events file depend only on the rows, so missing rows are the missing end of the file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"

    def write(self, curve: Curve) -> int:
        """Append what the events file lacks, or start another file if it holds other rows."""
        folder = self._folder / curve.experiment / curve.id
        for temporary in folder.glob(".events.out.tfevents.*"):
            temporary.unlink()  # its writer was killed; TensorBoard would read it, too
        files = sorted(folder.glob("events.out.tfevents.*"))
        records = _records(curve)
        content, present = b"".join(records), files[-1].read_bytes() if files else b""
        if files and content.startswith(present):
            newest = files[-1]
            with newest.open("ab") as file:
                file.write(content[len(present) :])
        else:
            # A running TensorBoard switches to a file with a later name and drops the points of the previous file. If
            # that file were deleted, TensorBoard would wait for it, so it is truncated instead.
            number = int(files[-1].name.split(".")[3]) + 1 if files else 1
            newest, present = folder / f"events.out.tfevents.{number:010d}.everstep", b""
            write_atomic(newest, content)
        for stale in set(files) - {newest}:
            os.truncate(stale, 0)
        ends = list(itertools.accumulate(map(len, records)))
        return sum(end > len(present) for end in ends[1:])


def _records(curve: Curve) -> list[bytes]:
    """Return the head of the file, then the record of each row."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    version = Event(wall_time=curve.began, file_version="brain.Event:2")
    start = Event(wall_time=curve.began, step=0, session_log=SessionLog(status=SessionLog.START))
    return [_encoded([version, start]), *(_encoded([_event(point)]) for point in curve.points)]


def _encoded(events: Sequence[Any]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _event(point: Point) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in sorted(point.metrics.items())]
    if point.recorded is not None:
        values += _values(point.recorded.read())
    return Event(wall_time=point.time_s, step=point.step, summary=Summary(value=values))


def _values(summary: summaries.Summary) -> Iterator[Any]:
    """Yield the histograms and the images of a summary."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    for name, found in summary.histograms.items():
        histogram = HistogramProto(
            min=found.low,
            max=found.high,
            num=found.values,
            sum=found.total,
            sum_squares=found.squares,
            bucket_limit=found.edges[1:],
            bucket=found.counts,
        )
        yield Summary.Value(tag=name, histo=histogram)
    for name, content in summary.images.items():
        width, height = struct.unpack(">II", content[16:24])  # of the first chunk of a PNG file
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=content)
        yield Summary.Value(tag=name, image=image)
