from __future__ import annotations

import io
import signal
import struct
from pathlib import Path

from PIL import Image

from tests.support.crash import run_forked
from tests.support.faults import FileFault
from tests.trackers.contract import Points, TrackerContract, curve, row, write


def in_tensorboard(folder: Path, run: str) -> Points:
    """Return the points that TensorBoard's own reader finds in every file, with nothing dropped as outdated."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard/demo" / run), {"scalars": 0}, purge_orphaned_data=False)
    reader.Reload()
    points: Points = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            points.setdefault((tag, event.step), []).append(event.value)
    return points


class TestTensorBoard(TrackerContract):
    name = "tensorboard"

    def read(self, folder: Path, run: str) -> Points:
        return in_tensorboard(folder, run)

    def media(self, folder: Path, run: str) -> list[tuple[int, list[int], int]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        sizes = {"histograms": 0, "images": 0}
        reader = EventAccumulator(str(folder / "tensorboard/demo" / run), sizes, purge_orphaned_data=False)
        reader.Reload()
        for found in (event.histogram_value for event in reader.Histograms("gradients/w")):
            assert found.bucket_limit[-1] == found.max
        bars = [
            (event.step, list(map(int, event.histogram_value.bucket))) for event in reader.Histograms("gradients/w")
        ]
        images = [Image.open(io.BytesIO(event.encoded_image_string)) for event in reader.Images("inputs")]
        assert [image.width for image in images] == [event.width for event in reader.Images("inputs")]
        return [(*bar, image.width) for bar, image in zip(bars, images, strict=True)]

    def stored(self, value: float) -> float:
        """TensorBoard stores single precision."""
        single: float = struct.unpack("f", struct.pack("f", value))[0]
        return single

    def test_an_events_file_that_a_kill_cut_off_anywhere_is_completed(self, folder: Path) -> None:
        every = curve(row(1), row(2))
        write("tensorboard", folder, every)
        path = next((folder / "tensorboard/demo/demo-a").iterdir())
        content = path.read_bytes()
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            write("tensorboard", folder, every)
            assert path.read_bytes() == content

    def test_a_temporary_file_of_a_killed_writer_is_removed(self, folder: Path) -> None:
        every = curve(row(1), row(2))
        fault = FileFault("before", operation="rename", rank=-1)
        assert run_forked(lambda: write("tensorboard", folder, every), [fault]) == -signal.SIGKILL
        write("tensorboard", folder, every)
        assert len(list((folder / "tensorboard/demo/demo-a").iterdir())) == 1
        assert in_tensorboard(folder, "demo-a") == self.expected(row(1), row(2))

    def test_a_running_tensorboard_drops_rows_that_were_replaced(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        write("tensorboard", folder, curve(row(1), row(2), row(3)))
        reader = EventAccumulator(str(folder / "tensorboard/demo/demo-a"))
        reader.Reload()
        write("tensorboard", folder, curve(row(1), row(2, loss=7.0)))
        reader.Reload()
        assert [(event.step, event.value) for event in reader.Scalars("val_loss")] == [(10, 1), (20, 7)]
