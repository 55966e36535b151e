"""Files of tokens, and the windows into which their pieces are cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from workflow_lib.datasets._folder import files_below
from workflow_lib.datasets._splits import files_of_splits
from workflow_lib.errors import DataError

SUFFIXES = (".bin", ".npy")
MEGATRON, MEGATRON_HEADER = b"MMIDIDX\0\0", 18  # of an .idx file: this, 8 bytes of a version, and the type
MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
BLOCK_TOKENS = 1 << 22  # searched at once for separators


@dataclass(frozen=True)
class TokenFile:
    """A file of `tokens` tokens, of which the first is at byte `offset`."""

    path: Path
    dtype: np.dtype
    offset: int
    tokens: int

    def check(self, start: int, content: memoryview, vocabulary: int) -> None:
        """Raise DataError for a token that is not below the vocabulary, in a part that begins at byte `start`."""
        skipped = max(0, self.offset - start)
        values = np.frombuffer(content[skipped:], self.dtype)
        if not len(values) or (values.max() < vocabulary and values.min() >= 0):
            return
        place = int(np.flatnonzero((values >= vocabulary) | (values < 0))[0])
        number = (start + skipped - self.offset) // self.dtype.itemsize + place
        raise DataError(
            f"{self.path}: token {number} is {values[place]}; allowed with data.params.vocabulary = {vocabulary}: 0 to "
            f"{vocabulary - 1}. If the file is right, correct the vocabulary, or the type of .bin files "
            f"(data.params.dtype; it was read as {self.dtype.name})"
        )


@dataclass(frozen=True)
class NewTokens:
    """The tokens of a file for a trained model, checked when they are read."""

    file: TokenFile
    vocabulary: int

    @property
    def size(self) -> int:
        """The number of the last token."""
        return self.file.tokens - 1

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from start to stop."""
        begin = self.file.offset + start * self.file.dtype.itemsize
        tokens = np.fromfile(self.file.path, self.file.dtype, stop - start, offset=begin)
        self.file.check(begin, tokens.data.cast("B"), self.vocabulary)
        return tokens


@dataclass(frozen=True)
class Pieces:
    """Pieces of files, cut into windows that stay within them: number of the file, first token, and tokens of each."""

    file: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    context: int
    stride: int

    @cached_property
    def ends(self) -> np.ndarray:
        """The number of windows up to the end of each piece; a piece shorter than a window has none."""
        more = -(-(self.size - self.context - 1) // self.stride)
        return np.cumsum(np.where(self.size > self.context, 1 + more, 0))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def places(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield the number of the file and the first token of each window."""
        piece = np.searchsorted(self.ends, rows, side="right")
        before = np.where(piece > 0, self.ends[piece - 1], 0)
        last = self.size[piece] - self.context - 1
        starts = self.begin[piece] + np.minimum((rows - before) * self.stride, last)
        yield from zip(self.file[piece].tolist(), starts.tolist(), strict=True)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return the pieces as arrays."""
        return {"file": self.file, "begin": self.begin, "size": self.size}


def new_files(path: Path, dtype: str, vocabulary: int) -> dict[str, NewTokens]:
    """Return the files at a path, or below it, by name; `dtype` is the type of the tokens in .bin files."""
    names = {path.name: path}
    if path.is_dir():
        names = {file.relative_to(path).as_posix(): file for file in files_below(path) if file.suffix in SUFFIXES}
    found = {name: NewTokens(token_file(file, dtype), vocabulary) for name, file in names.items()}
    for tokens in found.values():
        if tokens.size < 1:
            raise DataError(
                f"{tokens.file.path}: has {tokens.file.tokens} tokens; at least 2 are needed to predict one"
            )
    return found


def find_files(path: Path, dtype: str) -> dict[str, list[TokenFile]]:
    """Return the files of each split; `dtype` is the type of the tokens in .bin files."""
    found = files_of_splits(path, SUFFIXES)
    return {split: [token_file(path, dtype) for path in paths] for split, paths in found.items()}


def whole_files(files: Mapping[str, list[TokenFile]], context: int, stride: int) -> dict[str, Pieces]:
    """Return one piece for each file of each split. Raises DataError for a split whose files are all too short."""
    pieces = {}
    for split, of_split in files.items():
        sizes = np.array([file.tokens for file in of_split], np.int64)
        places = np.arange(len(of_split)), np.zeros(len(of_split), np.int64)
        pieces[split] = Pieces(places[0], places[1], sizes, context, stride)
        if not len(pieces[split]):
            longest = of_split[int(sizes.argmax())]
            raise DataError(
                f"{longest.path}: has {longest.tokens} tokens, and no file of {split} has more; a context of "
                f"{context} needs {context + 1}: lower data.params.context"
            )
    return pieces


def divide(pieces: Pieces, files: list[TokenFile], separator: int) -> Pieces:
    """Return a piece for each document, with the separator after it. Raises DataError if all are too short."""
    parts = []
    for number, file in enumerate(files):
        tokens = np.memmap(file.path, file.dtype, "r", file.offset, (file.tokens,))
        blocks = range(0, file.tokens, BLOCK_TOKENS)
        ends = [np.flatnonzero(tokens[start : start + BLOCK_TOKENS] == separator) + start + 1 for start in blocks]
        bounds = np.unique(np.concatenate([np.array([0, file.tokens], np.int64), *ends]))
        sizes = np.diff(bounds)
        long = sizes > pieces.context
        parts.append(np.array([np.full(long.sum(), number), bounds[:-1][long], sizes[long]], np.int64))
    file_numbers, begins, sizes = np.concatenate(parts, axis=1)
    divided = Pieces(file_numbers, begins, sizes, pieces.context, pieces.stride)
    if not len(divided):
        raise DataError(
            f"{files[0].path}: no document, up to the separator {separator}, has the {pieces.context + 1} tokens that "
            f"a context of {pieces.context} needs: lower data.params.context, or set cross_documents: true"
        )
    return divided


def token_file(path: Path, dtype: str) -> TokenFile:
    size = path.stat().st_size
    if path.suffix == ".npy":
        return _npy_file(path, size)
    _check_index(path.with_suffix(".idx"), dtype)
    kind = np.dtype(dtype).newbyteorder("<")
    if size % kind.itemsize:
        raise DataError(
            f"{path}: its {size} bytes are not a whole number of {dtype} tokens of {kind.itemsize} bytes: it is "
            "incomplete, or data.params.dtype is not its type"
        )
    return TokenFile(path, kind, 0, size // kind.itemsize)


def _check_index(path: Path, dtype: str) -> None:
    """Raise DataError if an index of Megatron-LM beside a .bin file says that its tokens have another type."""
    try:
        with path.open("rb") as file:
            header = file.read(MEGATRON_HEADER)
    except FileNotFoundError:
        return
    if not header.startswith(MEGATRON) or len(header) < MEGATRON_HEADER:
        return
    if (kind := MEGATRON_TYPES.get(header[-1], "unknown")) != dtype:
        raise DataError(f"{path}: says that its tokens are {kind}, but data.params.dtype is {dtype}")


def _npy_file(path: Path, size: int) -> TokenFile:
    from numpy.lib import format as npy

    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(file)
            offset = file.tell()
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: is not a .npy file ({error})") from error
    if dtype.kind not in "iu" or len(shape) != 1:
        raise DataError(f"{path}: has {dtype} of shape {shape}; allowed: whole numbers of shape (n,)")
    if size != offset + shape[0] * dtype.itemsize:
        raise DataError(f"{path}: has {size} bytes, but its header needs {offset + shape[0] * dtype.itemsize}")
    return TokenFile(path, dtype, offset, shape[0])
