"""The messages of an experiment, and which channel has got them.

    results/<experiment>/notifications/<event>-<key>.json     a message and the state of each channel
    results/<experiment>/notifications/open.json              a pipeline has begun, and its end is not told yet

Each try is recorded on disk before it is made, and its success after it. Therefore, over all restarts:

- a message that is recorded as sent is not sent again, and one with the same facts has the same record;
- a channel gets at most `tries` tries; those for which the time of a process is too short are left to the next one;
- a message comes twice only if a process was killed, or the answer was lost, between delivery and record. The second
  one has the same key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow_lib.files import UNREADABLE, decoded, make_dirs, read_json, write_signed
from workflow_lib.notify.channels import Channel, NotSent, PartlySent
from workflow_lib.notify.message import Message
from workflow_lib.results import layout

PENDING, SENT, GIVEN_UP = "pending", "sent", "given up"
FIRST_PAUSE_S, PAUSE_GROWTH = 2.0, 3.0
LATEST_TRY = 0.9  # of the time for sending: a later try could be cut off between delivery and answer


class _Delivery:
    """A message with its record, which the threads of its channels change one after another."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.record, self._path, self._lock = record, path, threading.Lock()
        self.message = decoded(Message, record["message"])

    def write(self, channel: dict[str, Any], **changes: Any) -> None:
        """Change the state of a channel, also on disk."""
        with self._lock:
            channel.update(changes)
            write_signed(self._path, self.record)


class Outbox:
    """Tells each message once on each channel."""

    def __init__(
        self,
        results: Path,
        channels: Mapping[str, Channel],
        tries: int,
        seconds: float,
        pause: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds` is the time that `tell` and `resume` may take, for all channels and tries together."""
        self._results, self._channels, self._tries, self._pause = results, channels, tries, pause
        self._seconds, self._now_s = seconds, now_s

    def tell(self, message: Message) -> list[str]:
        """Send the message where it was not sent yet; return why it was not, by channel, one line each."""
        path = layout.notification_file(self._results, message.event, message.key)
        with self._locked() as end_s:
            if _read(path) is None:
                new = {name: {"state": PENDING, "tries": 0} for name in self._channels}
                write_signed(path, {"message": message.as_json(), "channels": new})
            return self._send([path], end_s)

    def resume(self) -> list[str]:
        """Send what an earlier process left unsent; return why it was not sent, as `tell` does."""
        if not (paths := layout.notification_files(self._results)):
            return []
        with self._locked() as end_s:
            return self._send(paths, end_s)

    def _send(self, paths: Sequence[Path], end_s: float) -> list[str]:
        """Try all channels of all messages at once, so that a slow one delays no other; return the lines of `tell`."""
        lines: list[str] = []
        threads = []
        for path in paths:
            if (record := _read(path)) is None or not record["channels"]:
                continue
            delivery = _Delivery(path, record)
            for name, state in record["channels"].items():
                if state["state"] == PENDING and name in self._channels:
                    arguments = (delivery, name, end_s, lines)
                    threads.append(threading.Thread(target=self._deliver, args=arguments, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(lines)

    def _deliver(self, delivery: _Delivery, name: str, end_s: float, lines: list[str]) -> None:
        """Try a channel until it has accepted the message, or has had its tries, or the time is over."""
        state, pause_s, began_s = delivery.record["channels"][name], FIRST_PAUSE_S, self._now_s()
        latest_s = began_s + LATEST_TRY * (end_s - began_s)
        try:
            reason = self._try(delivery, state, name, end_s)
            while state["state"] == PENDING and self._now_s() + pause_s < latest_s:
                self._pause(pause_s)
                pause_s *= PAUSE_GROWTH
                if self._now_s() < latest_s:  # the pause was not longer than asked for
                    reason = self._try(delivery, state, name, end_s)
        except OSError as error:
            reason = f"its record cannot be written: {error}"
        if reason:
            if state["state"] == PENDING:
                reason = f"{reason}. The next start of the pipeline tries it again"
            lines.append(f"{name}: the message about {delivery.message.event} was not sent: {reason}")

    def _try(self, delivery: _Delivery, state: dict[str, Any], name: str, end_s: float) -> str:
        """Try a channel once; return why it failed, or an empty text. A killed process may have made the last try."""
        reason = "its last try was interrupted"
        if state["tries"] < self._tries:
            delivery.write(state, tries=state["tries"] + 1)
            try:
                self._channels[name](delivery.message, end_s - self._now_s())
            except NotSent as error:
                reason = str(error)
                is_sent = isinstance(error, PartlySent)
            else:
                reason, is_sent = "", True
            if is_sent:
                delivery.write(state, state=SENT)
                return reason
        if state["tries"] >= self._tries:
            delivery.write(state, state=GIVEN_UP)
            return f"{reason}. It is given up after {state['tries']} tries"
        return reason

    @contextmanager
    def _locked(self) -> Iterator[float]:
        """Wait until no other process or thread sends; yield when the time of this one is over."""
        from filelock import FileLock

        folder = layout.notifications_dir(self._results)
        make_dirs(folder)
        with FileLock(folder / ".lock", timeout=2 * self._seconds):
            yield self._now_s() + self._seconds


def _read(path: Path) -> dict[str, Any] | None:
    """Return the record; None if there is none. A damaged one has no channels: what was sent is not sent again."""
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = read_json(path, "message", "channels")
    except UNREADABLE:
        return {"message": {}, "channels": {}}
    return record
