"""The messages of an experiment, and which channel has got them.

    results/<experiment>/notifications/<event>-<key>.json     a message and the state of each channel
    results/<experiment>/notifications/open.json              a pipeline has begun, and its end is not told yet

Each try is recorded on disk before it is made, and its success after it. Therefore, over all restarts:

- a message that is recorded as sent is not sent again, and one with the same facts has the same record;
- a channel gets at most `tries` tries;
- a message comes twice only if a process was killed, or the answer was lost, between delivery and record. The second
  one has the same key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow_lib.files import UNREADABLE, decoded, make_dirs, read_json, write_signed
from workflow_lib.notify.channels import Channel, NotSent, PartlySent
from workflow_lib.notify.message import Message
from workflow_lib.results import layout

PENDING, SENT, GIVEN_UP = "pending", "sent", "given up"
LONGEST_PAUSE_S = 60.0
LOCK_S = 600.0  # limit for waiting until another process or thread has sent


class Outbox:
    """Tells each message once on each channel."""

    def __init__(
        self,
        results: Path,
        channels: Mapping[str, Channel],
        tries: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._results, self._channels, self._tries, self._pause = results, channels, tries, pause

    def tell(self, message: Message) -> list[str]:
        """Send the message where it was not sent yet; return why it was not, by channel, one line each."""
        path = layout.notification_file(self._results, message.event, message.key)
        with self._locked():
            if _read(path) is None:
                new = {name: {"state": PENDING, "tries": 0} for name in self._channels}
                write_signed(path, {"message": message.as_json(), "channels": new})
            return self._send(path)

    def resume(self) -> list[str]:
        """Send what an earlier process left unsent; return why it was not sent, as `tell` does."""
        if not (paths := layout.notification_files(self._results)):
            return []
        with self._locked():
            return [line for path in paths for line in self._send(path)]

    def _send(self, path: Path) -> list[str]:
        """Try all channels, then again those that failed, with growing pauses."""
        record = _read(path)
        if record is None or not record["channels"]:
            return []
        message, states = decoded(Message, record["message"]), record["channels"]
        lines = {}
        for number in range(self._tries):
            open_channels = [name for name, state in states.items() if state["state"] == PENDING]
            waiting = [name for name in open_channels if name in self._channels]
            if number and waiting:
                self._pause(min(2.0 * 5 ** (number - 1), LONGEST_PAUSE_S))
            for name in waiting:
                if reason := self._try(path, record, states[name], name, message):
                    lines[name] = f"{name}: the message about {message.event} was not sent: {reason}"
                else:
                    lines.pop(name, None)
        return list(lines.values())

    def _try(self, path: Path, record: dict[str, Any], state: dict[str, Any], name: str, message: Message) -> str:
        """Try a channel once; return why it failed, or an empty text. A killed process may have made the last try."""
        reason = "its last try was interrupted"
        if state["tries"] < self._tries:
            state["tries"] += 1
            write_signed(path, record)
            try:
                self._channels[name](message)
            except NotSent as error:
                reason = str(error)
                is_sent = isinstance(error, PartlySent)
            else:
                reason, is_sent = "", True
            if is_sent:
                state["state"] = SENT
                write_signed(path, record)
                return reason
        if state["tries"] >= self._tries:
            state["state"] = GIVEN_UP
            write_signed(path, record)
            return f"{reason}. It is given up after {state['tries']} tries"
        return reason

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock

        folder = layout.notifications_dir(self._results)
        make_dirs(folder)
        with FileLock(folder / ".lock", timeout=LOCK_S):
            yield


def _read(path: Path) -> dict[str, Any] | None:
    """Return the record; None if there is none. A damaged one has no channels: what was sent is not sent again."""
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = read_json(path, "message", "channels")
    except UNREADABLE:
        return {"message": {}, "channels": {}}
    return record
