"""Text files as codes (bytes or code points), and windows of concatenated files; no file is held in memory."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from workflow_lib.data import SourceFile
from workflow_lib.datasets._bpe import Tokenizer
from workflow_lib.errors import DataError
from workflow_lib.files import in_utf8

BLOCK_BYTES = 1 << 20  # decoded at once
STRIDE = 1 << 12  # characters between two recorded byte positions of a file
NEAR = 4  # contexts; windows that are no further apart are read in one piece
END = {"bytes": 0xFF, "any bytes": 0x100, "characters": 0x110000}  # after each file: a code that cannot be in its text

Tokens = Literal["bytes", "any bytes", "characters"]  # `any bytes` can include 0xFF, which UTF-8 never has


@dataclass(frozen=True)
class Document:
    """A file of `size` codes; `starts` are the byte positions of every STRIDE-th character, and of the end."""

    file: SourceFile
    tokens: Tokens
    size: int
    starts: tuple[int, ...] = ()

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return the codes from start to stop; the code at `size` is the end code."""
        within = min(stop, self.size)
        if self.tokens != "characters":
            codes = np.frombuffer(self._bytes(start, within), np.uint8)
            codes = codes if self.tokens == "bytes" else codes.astype(np.uint16)
        else:
            first = start // STRIDE
            text = self._bytes(self.starts[first], self.starts[-(-within // STRIDE)]).decode()
            codes = code_points(text[start - first * STRIDE : within - first * STRIDE])
        return np.append(codes, codes.dtype.type(END[self.tokens])) if stop > self.size else codes

    def _bytes(self, start: int, stop: int) -> bytes:
        with self.file.path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        if len(content) < stop - start:
            raise DataError(f"{self.file.path}: changed while it was being read; run again when it is complete")
        return content


def index_document(path: Path, tokens: Tokens) -> tuple[Document, set[str]]:
    """Return the document in a file and its set of characters. Raises DataError at the first byte that is not UTF-8."""
    file = SourceFile.of(path)
    if tokens != "characters":
        return Document(file, "any bytes" if _has_end(path) else "bytes", file.size), set()
    seen: set[str] = set()
    starts, size, rest = [0], 0, ""
    for text in decoded(path):
        seen |= set(text)
        size += len(text)
        rest += text
        for start in range(0, len(rest) - STRIDE + 1, STRIDE):
            starts.append(starts[-1] + len(rest[start : start + STRIDE].encode()))
        rest = rest[len(rest) // STRIDE * STRIDE :]
    if rest:
        starts.append(starts[-1] + len(rest.encode()))
    return Document(file, tokens, size, tuple(starts)), seen


def _has_end(path: Path) -> bool:
    """Return True if the file has the byte 0xFF, which is possible in Latin-1, UTF-16 and binary files."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            if END["bytes"] in block:
                return True
    return False


def decoded(path: Path) -> Iterator[str]:
    """Yield the text of a file. Raises DataError at the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while True:
            begin = file.tell() - len(decoder.getstate()[0])  # a character may begin in the block before
            block = file.read(BLOCK_BYTES)
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: not UTF-8 at byte {begin + error.start}; {in_utf8(path)}, exclude it with "
                    "data.params.pattern, or set data.params.tokens: bytes"
                ) from error
            if not block:
                return


def code_points(text: str) -> np.ndarray:
    """Return the code points of the characters."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


@dataclass(frozen=True)
class EncodedDocument:
    """A file of `size` tokens of a tokenizer, which are in a temporary file; `end` is the token after them."""

    file: SourceFile
    tokens: np.ndarray
    end: int

    @property
    def size(self) -> int:
        """The number of tokens without the end."""
        return len(self.tokens)

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from start to stop; the one at `size` is the end."""
        tokens = self.tokens[start : min(stop, self.size)]
        return np.append(tokens, np.int32(self.end)) if stop > self.size else tokens


def encode_documents(tokenizer: Tokenizer, paths: Sequence[Path]) -> dict[Path, EncodedDocument]:
    """Return the files as tokens, which take no memory: they are in a temporary file without a name."""
    sizes, sources = [], []
    with tempfile.TemporaryFile() as temporary:  # the kernel keeps a mapped file that has no name
        for path in paths:
            sources.append(SourceFile.of(path))
            sizes.append(0)
            for tokens in tokenizer.encode_long(decoded(path)):
                sizes[-1] += len(tokens)
                temporary.write(tokens.tobytes())
        temporary.flush()
        total = sum(sizes)
        tokens = np.memmap(temporary, np.int32, "r", shape=(total,)) if total else np.empty(0, np.int32)
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    return {file.path: EncodedDocument(file, part, tokenizer.mark) for file, part in zip(sources, parts, strict=True)}


@dataclass(frozen=True)
class Stream:
    """Concatenated documents, cut into windows; the last window begins earlier, so that it ends with the stream."""

    documents: Sequence[Document | EncodedDocument]
    context: int

    @cached_property
    def ends(self) -> np.ndarray:
        """Positions in the stream after each document and its end code."""
        return np.cumsum([document.size + 1 for document in self.documents])

    def __len__(self) -> int:
        """Return the number of windows."""
        return -(-(int(self.ends[-1]) - 1) // self.context)

    def place(self, number: int) -> tuple[Path, int]:
        """Return the file in which a window begins, and the number of its first token in the file."""
        start = min(number * self.context, int(self.ends[-1]) - 1 - self.context)
        document = int(np.searchsorted(self.ends, start, side="right"))
        begin = int(self.ends[document]) - self.documents[document].size - 1
        return self.documents[document].file.path, start - begin

    def windows(self, numbers: np.ndarray) -> np.ndarray:
        """Return the codes of these windows, whose numbers are ascending: [windows, context + 1]."""
        starts = np.minimum(numbers * self.context, int(self.ends[-1]) - 1 - self.context)
        runs = np.split(starts, np.flatnonzero(np.diff(starts) > NEAR * self.context) + 1)
        within = np.arange(self.context + 1)
        return np.concatenate(
            [self._codes(run[0], run[-1] + self.context + 1)[run[:, None] - run[0] + within] for run in runs]
        )

    def _codes(self, start: int, stop: int) -> np.ndarray:
        parts = []
        for number in range(int(np.searchsorted(self.ends, start, side="right")), len(self.documents)):
            begin = int(self.ends[number]) - self.documents[number].size - 1
            if begin >= stop:
                break
            parts.append(self.documents[number].codes(max(start - begin, 0), stop - begin))
        return np.concatenate(parts)


class Codes(Protocol):
    """Codes that are read in parts, such as those of a document."""

    @property
    def size(self) -> int:
        """The number of the last code: there is one more."""

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return the codes from start to stop."""


def passages(document: Codes, context: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the first token and the codes of consecutive passages of a document with its end, at most `size` at a time.

    A passage has context + 1 tokens, the last of which is the first of the next passage; the last passage is shorter.
    """
    total = document.size + 1
    whole = (total - 1) // context
    within = np.arange(context + 1)
    for first in range(0, whole, size):
        starts = np.arange(first, min(first + size, whole)) * context
        codes = document.codes(int(starts[0]), int(starts[-1]) + context + 1)
        yield starts, codes[starts[:, None] - starts[0] + within]
    if (start := whole * context) < total - 1:
        yield np.array([start]), document.codes(start, total)[None]
