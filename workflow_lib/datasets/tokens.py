"""Tokenised text in `.bin` or `.npy` files, read in place, for predicting the next token.

A `.bin` file is tokens without a header, as nanoGPT writes them; a `.npy` file is an array of whole numbers, [n]. The
tokens of a file are cut into windows of `context` + 1; with the default stride, the last token of a window is the first
of the next. The last window of a file begins earlier, so that it ends with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Section, Task
from workflow_lib.plugins.section import NOT_IDENTITY, reject_unused

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.data.inputs import Named

LOOKED_AT = 1 << 16  # tokens of a split that are checked before the data is prepared
PASSAGE = 16  # contexts: this much text is never divided between splits that are drawn


class Params(Section):
    """Settings of the files and of the windows."""

    path: Path = Field(
        description="a file, or a folder of .bin and .npy files; names or folders can begin with a split"
    )
    vocabulary: int = Field(ge=2, le=1 << 31, description="number of different tokens: all are smaller than it")
    dtype: Literal["uint8", "uint16", "uint32", "int32"] = Field(
        "uint16", description="type of the tokens in .bin files"
    )
    context: int = Field(128, ge=1, le=1 << 20, description="largest number of tokens to predict the next one from")
    stride: int | None = Field(None, ge=1, description="tokens from one window to the next; null: context")
    separator: int | None = Field(
        None, ge=0, description="token between two documents; needed if windows must not cross"
    )
    cross_documents: bool = Field(
        True, description="true packs documents: a window can hold the end of one and the start of the next"
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer.json, or a folder of save_pretrained: names of the tokens for the report; null: numbers",
        json_schema_extra=NOT_IDENTITY,
    )

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if self.cross_documents:
            reject_unused(self, ("separator",), "cross_documents: false")
        return self


def task(params: Params) -> Task:
    """Return `language`: the model predicts the next token."""
    return "language"


def look(params: Params, root: Path) -> DatasetFacts:
    """Return the number of windows, from the sizes and headers of the files; check the first tokens of each split."""
    from workflow_lib.datasets._token_files import NewTokens, find_files, whole_files

    _check(params)
    files = find_files(root / params.path, params.dtype)
    pieces = whole_files(files, params.context, params.stride or params.context)
    for first, *_ in files.values():
        NewTokens(first, params.vocabulary).codes(0, min(first.tokens, LOOKED_AT))
    is_drawn = set(files) == {"train"} and params.cross_documents
    return DatasetFacts("texts", samples=len(pieces["train"]) if is_drawn else None)


def open_source(params: Params, root: Path, index: Mapping[str, np.ndarray] | None = None) -> Source:
    """Return the windows of the files."""
    import numpy as np

    from workflow_lib.data import MappedFiles, Source
    from workflow_lib.datasets._bpe import token_names
    from workflow_lib.datasets._folder import name_below
    from workflow_lib.datasets._token_files import Pieces, divide, find_files, whole_files

    _check(params)
    files, stride = find_files(root / params.path, params.dtype), params.stride or params.context
    pieces = whole_files(files, params.context, stride)
    found = [file for of_split in files.values() for file in of_split]
    mapped = MappedFiles(
        [file.path for file in found],
        lambda number, start, content: found[number].check(start, content, params.vocabulary),
    )
    stored: dict[str, np.ndarray] = {}
    if not params.cross_documents:
        for split in files:
            if index is None:
                pieces[split] = divide(pieces[split], files[split], int(params.separator or 0))
                stored |= {f"{split}.{name}": array for name, array in pieces[split].arrays().items()}
            else:
                file, begin, size = (index[f"{split}.{name}"] for name in ("file", "begin", "size"))
                pieces[split] = Pieces(file, begin, size, params.context, stride)
    first = {split: found.index(of_split[0]) for split, of_split in files.items()}
    dtype = np.uint8 if params.vocabulary <= 256 else np.int32

    def windows(split: str, rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), params.context + 1), dtype)
        for row, (number, start) in enumerate(pieces[split].places(rows)):
            file = found[number + first[split]]
            begin = file.offset + start * file.dtype.itemsize
            content = mapped.view(number + first[split], begin, begin + (params.context + 1) * file.dtype.itemsize)
            inputs[row] = np.frombuffer(content, file.dtype)
        return inputs

    def named(split: str, rows: np.ndarray) -> dict[str, Any]:
        places = list(pieces[split].places(rows))
        paths = [found[number + first[split]].path for number, _ in places]
        files = [name_below(path, root / params.path) for path in paths]
        return {"file": files, "token": [start for _, start in places]}

    return Source(
        task="language",
        targets={split: np.empty((len(of_split), 0), np.int64) for split, of_split in pieces.items()},
        sample_names=named,
        group_rows=-(-PASSAGE * params.context // stride),
        read=windows,
        is_thread_safe=True,
        vocabulary=token_names(
            root / params.tokenizer if params.tokenizer is not None and index is None else None, params.vocabulary
        ),
        mapped=mapped,
        index=stored,
        close=mapped.close,
    )


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the passages of a .bin or .npy file of tokens, or of those of a folder, named by file and first token."""
    from workflow_lib.data import Inputs
    from workflow_lib.datasets._documents import passages
    from workflow_lib.datasets._token_files import new_files

    files = new_files(path, params.dtype, params.vocabulary)

    def read(size: int) -> Iterator[Named]:
        for name, tokens in files.items():
            for starts, codes in passages(tokens, params.context, size):
                yield {"file": [name] * len(starts), "token": starts}, codes.astype(manifest.dtype)

    return Inputs(read=read, samples=sum(-(-tokens.size // params.context) for tokens in files.values()))


def _check(params: Params) -> None:
    if not params.cross_documents and params.separator is None:
        raise DataError("data.params.cross_documents: false needs data.params.separator, the token between documents")
    if params.separator is not None and params.separator >= params.vocabulary:
        raise DataError(
            f"data.params.separator = {params.separator} is not below data.params.vocabulary = {params.vocabulary}"
        )
