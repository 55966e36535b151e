"""Text files as bytes or characters, of which a model predicts the next; without a path, Python's own library is read.

The files are laid end to end, by name, each followed by an <end> token, and cut in windows of `context` + 1 tokens: the
last token of one is the first of the next, since it is predicted from the one and predicts in the other.

Where the splits are drawn, a file lies in one split only, so that nothing is tested on text like that beside which it
was trained; small neighbouring files stay together. One single file is cut in passages of 16 contexts instead. Folders
train, val and test, if there are, are the splits.
"""

from __future__ import annotations

import logging
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.errors import DataError
from workflow_lib.plugins import Task
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Source
    from workflow_lib.datasets._documents import Document, Stream, Tokens

log = logging.getLogger(__name__)

TOGETHER = 16  # contexts in a passage, and at least so many in the files that stay together
LIBRARY = ("asyncio", "email", "http", "importlib", "json", "logging", "re", "urllib")  # 1.8 MB


class Params(Checksums):
    """The files, and what their tokens are."""

    path: Path | None = Field(
        None,
        description="a file or a folder, relative to the project's root; null: sources of Python's standard library",
    )
    pattern: str = Field("*", min_length=1, description="which files of the folder, at any depth: `*.txt`")
    tokens: Literal["bytes", "characters"] = Field("bytes", description="what is predicted; characters need UTF-8")
    context: int = Field(128, ge=1, le=1 << 20, description="from how many tokens the next is predicted, at most")
    split_by: Literal["file", "passage"] | None = Field(
        None, description="what lies in one split as a whole; null: files, or passages of a single file"
    )


def task(params: Params) -> Task:
    """The next token is predicted."""
    return "language"


def open_source(params: Params, root: Path) -> Source:
    """Windows of the files, each of which has been read once already."""
    import numpy as np

    from workflow_lib.data import Source, content_digest
    from workflow_lib.datasets._documents import indexed
    from workflow_lib.datasets._folder import each

    found = _found(params, root)
    read = each(lambda path: indexed(path, params.tokens), [path for paths in found.values() for path in paths])
    documents = {document.file.path: document for document, _ in read}
    tokens: Tokens = params.tokens
    if odd := next((document for document in documents.values() if document.tokens == "any bytes"), None):
        log.warning(
            "%s: has the byte 0xFF, which no UTF-8 text has: <end> is a token of its own, of 257", odd.file.path
        )
        tokens = "any bytes"
        documents = {path: replace(document, tokens=tokens) for path, document in documents.items()}
    alphabet, vocabulary = _vocabulary(tokens, set().union(*(seen for _, seen in read)))
    dtype = np.uint8 if len(vocabulary) <= 256 else np.int32
    by_passage = params.split_by == "passage" or (params.split_by is None and len(documents) == 1)
    streams = {
        split: _streams([documents[path] for path in paths], params.context, in_one=by_passage)
        for split, paths in found.items()
    }
    ends = {split: np.cumsum([len(stream) for stream in parts]) for split, parts in streams.items()}

    def windows(split: str, rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), params.context + 1), dtype)
        stream_of = np.searchsorted(ends[split], rows, side="right")
        for number in np.unique(stream_of).tolist():
            stream, here = streams[split][number], stream_of == number
            codes = stream.windows(rows[here] - (ends[split][number] - len(stream)))
            inputs[here] = np.searchsorted(alphabet, codes)
        return inputs

    rows = np.arange(ends["train"][-1])
    return Source(
        task="language",
        targets={split: np.empty((of_split[-1], 0), np.int64) for split, of_split in ends.items()},
        groups=rows // TOGETHER if by_passage else np.searchsorted(ends["train"], rows, side="right"),
        read=windows,
        is_thread_safe=True,
        vocabulary=vocabulary,
        files=tuple(document.file for document in documents.values()),
        content=content_digest(np.array([document.file.digest for document in documents.values()])),
    )


def _found(params: Params, root: Path) -> dict[str, list[Path]]:
    """The files of each split, by name."""
    from workflow_lib.datasets._folder import files_below, splits_of

    if params.path is None and (params.sha256 or params.md5):
        raise DataError("data.params: a checksum is that of the data at data.params.path, which is not given")
    if params.path is None:
        library = Path(sysconfig.get_path("stdlib"))
        return {"train": [path for name in LIBRARY for path in sorted((library / name).rglob("*.py"))]}
    path = root / params.path
    params.verify(path)
    if path.is_file():
        return {"train": [path]}
    found = {}
    for split, folder in splits_of(path).items():
        found[split] = [file for file in files_below(folder) if file.relative_to(folder).match(params.pattern)]
        if not found[split]:
            raise DataError(f"{folder}: has no file like `{params.pattern}` (data.params.pattern)")
    return found


def _vocabulary(tokens: str, seen: set[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The codes of all tokens, ascending, and how a person writes each."""
    import numpy as np

    from workflow_lib.datasets._documents import END, code_points

    if tokens != "characters":
        end = END[tokens]
        names = [chr(code) if code < 0x80 else f"<{code:02x}>" for code in range(end)]
        return np.arange(end + 1, dtype=np.uint8 if end < 256 else np.uint16), (*names, "<end>")
    characters = sorted(seen)
    return np.append(code_points("".join(characters)), np.uint32(END["characters"])), (*characters, "<end>")


def _streams(documents: list[Document], context: int, *, in_one: bool) -> list[Stream]:
    """The documents end to end: all of them, or as few as fill TOGETHER contexts."""
    from workflow_lib.datasets._documents import Stream

    groups: list[list[Document]] = [[]]
    for document in documents:
        if not in_one and sum(one.size + 1 for one in groups[-1]) > TOGETHER * context:
            groups.append([])
        groups[-1].append(document)
    if len(groups) > 1 and sum(one.size + 1 for one in groups[-1]) <= TOGETHER * context:
        groups[-2:] = [groups[-2] + groups[-1]]
    streams = [Stream(group, context) for group in groups]
    if int(streams[0].ends[-1]) <= context:
        raise DataError(
            f"{documents[0].file.path}: has {streams[0].ends[-1]} tokens with the {len(documents) - 1} files after it; "
            f"a context of {context} needs more (data.params.context)"
        )
    return streams
