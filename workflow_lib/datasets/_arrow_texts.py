"""Windows of texts or tokens in Arrow columns: the rows of a split are one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.datasets._arrow_files import Batch, Table, Where, pyarrow
from workflow_lib.datasets._bpe import Tokenizer, token_names, tokenizer_for
from workflow_lib.errors import DataError

ROWS_AT_ONCE = 256  # tokenised together
Encode = Callable[[Batch, Sequence[int], Where], list[np.ndarray]]


def encoder(
    params: Any, root: Path, tables: Mapping[str, Table], arrays: dict[str, np.ndarray]
) -> tuple[Encode, tuple[str, ...], str]:
    """Return a function that gives the tokens of rows, the names of the tokens, and the content of the tokenizer."""
    if params.tokens:
        is_new = not any(name.endswith(".ends") for name in arrays)
        path = root / params.tokenizer if params.tokenizer is not None and is_new else None
        return _tokens_of(params), token_names(path, params.vocabulary), ""
    if "tokenizer" in arrays:
        tokenizer = Tokenizer(bytes(arrays["tokenizer"]).decode(), params.bpe.mark, "the stored tokenizer")
    else:
        texts = (text for batch, _ in tables["train"].batches() for text in (*_texts(batch, params.text, None), "\n"))
        tokenizer = tokenizer_for(params.bpe, root, texts)
        arrays["tokenizer"] = np.frombuffer(tokenizer.content.encode(), np.uint8)

    def encode(batch: Batch, places: Sequence[int], where: Where) -> list[np.ndarray]:
        encoded = tokenizer.encode(_texts(batch, params.text, places))
        return [np.array([*tokens, tokenizer.mark], np.int32) for tokens in encoded]

    return encode, tokenizer.names(), tokenizer.content


def _texts(batch: Batch, name: str, places: Sequence[int] | None) -> list[str]:
    column = batch.column(name)
    check_texts(name, column.type)
    chosen = column if places is None else column.take(pyarrow().array(places))
    texts: list[str] = chosen.to_pylist()
    return texts


def check_texts(name: str, kind: Any) -> None:
    """Raise DataError unless a column has texts."""
    types = pyarrow().types
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise DataError(f"`{name}` is {kind}; allowed: texts (data.params.text)")


def check_tokens(name: str, kind: Any) -> None:
    """Raise DataError unless a column has lists of whole numbers."""
    types = pyarrow().types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not types.is_integer(kind.value_type):
        raise DataError(f"`{name}` is {kind}; allowed: lists of whole numbers (data.params.tokens)")


def _tokens_of(params: Any) -> Encode:
    end = [] if params.separator is None else [params.separator]

    def encode(batch: Batch, places: Sequence[int], where: Where) -> list[np.ndarray]:
        column = batch.column(params.tokens)
        check_tokens(params.tokens, column.type)
        found = []
        for place in places:
            values = column[place].values
            if values.null_count:
                raise DataError(f"{where(place)}: `{params.tokens}` has a null inside of a list; remove it")
            tokens = np.asarray(values).astype(np.int64)
            if len(tokens) and not (tokens.min() >= 0 and tokens.max() < params.vocabulary):
                wrong = tokens[(tokens < 0) | (tokens >= params.vocabulary)][0]
                raise DataError(
                    f"{where(place)}: `{params.tokens}` has the token {wrong}; allowed with data.params.vocabulary = "
                    f"{params.vocabulary}: 0 to {params.vocabulary - 1}"
                )
            found.append(np.append(tokens, end).astype(np.int32))
        return found

    return encode


class Windows:
    """The windows of one split."""

    def __init__(self, table: Table, encode: Encode, params: Any) -> None:
        self._table, self._encode = table, encode
        self._context, self._stride = params.context, params.stride or params.context
        self._ends = np.empty(0, np.int64)

    def measure(self) -> np.ndarray:
        """Return the number of tokens up to the end of each row."""
        sizes = [
            np.array(
                [
                    len(tokens)
                    for tokens in self._encode(batch, range(start, min(start + ROWS_AT_ONCE, batch.num_rows)), where)
                ]
            )
            for batch, where in self._table.batches()
            for start in range(0, batch.num_rows, ROWS_AT_ONCE)
        ]
        return np.cumsum(np.concatenate([np.empty(0, np.int64), *sizes]), dtype=np.int64)

    def set_ends(self, split: str, ends: np.ndarray) -> None:
        """Use what `measure` returned. Raises DataError if there is not one window."""
        self._ends = ends
        if len(self) < 1:
            tokens = int(ends[-1]) if len(ends) else 0
            raise DataError(
                f"{split} has {tokens} tokens; a context of {self._context} needs {self._context + 1}: lower "
                "data.params.context"
            )

    @classmethod
    def of_new(cls, table: Table, encode: Encode, params: Any) -> Windows:
        """Return the texts of a new file, of any length, which `passages` reads. Raises DataError for an empty file."""
        found = cls(table, encode, params)
        found._ends = found.measure()
        if found.size < 1:
            raise DataError(f"has {found.size + 1} tokens; at least 2 are needed to predict one")
        return found

    @property
    def size(self) -> int:
        """The tokens of all rows but the last one, which ends the document."""
        return int(self._ends[-1]) - 1 if len(self._ends) else -1

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from start to stop."""
        first, last = np.searchsorted(self._ends, (start, stop - 1), side="right").tolist()
        parts = self._table.parts(np.arange(first, last + 1))
        tokens = np.concatenate([tokens for part in parts for tokens in self._encode(*part)])
        begin = start - (int(self._ends[first - 1]) if first else 0)
        return tokens[begin : begin + stop - start]

    def __len__(self) -> int:
        more = int(self._ends[-1]) - self._context - 1 if len(self._ends) else -1
        return 1 + -(-more // self._stride) if more >= 0 else 0

    def _starts(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the first token of each window."""
        return np.minimum(rows * self._stride, int(self._ends[-1]) - 1 - self._context)

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row in which each window begins, and the number of its first token there."""
        return self.places_of(self._starts(rows))

    def places_of(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of each token, and its number there."""
        first = np.searchsorted(self._ends, starts, side="right")
        return first, starts - np.append(0, self._ends)[first]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of these windows, int32 [windows, context + 1]."""
        starts = self._starts(rows)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + self._context, side="right")
        needed = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]))
        texts = dict(
            zip(
                needed.tolist(),
                (tokens for part in self._table.parts(needed) for tokens in self._encode(*part)),
                strict=True,
            )
        )
        windows = np.empty((len(rows), self._context + 1), np.int32)
        for window, start, a, b in zip(windows, starts.tolist(), first.tolist(), last.tolist(), strict=True):
            begin = start - (int(self._ends[a - 1]) if a else 0)
            window[:] = np.concatenate([texts[row] for row in range(a, b + 1)])[begin : begin + self._context + 1]
        return windows
