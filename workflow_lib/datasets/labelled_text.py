"""Texts with a class each: a CSV or Parquet file, or a folder of text files; without a path, sources of Python.

reviews.csv                                   a column of texts, a column of classes
reviews/good/1.txt, reviews/bad/x/2.txt       a folder for each class; the splits are drawn
reviews/train/good/1.txt, reviews/test/...    the folders are the splits; a missing one is drawn from train

Inputs are tokens [n, length]. A longer text is cut, and token 0 fills a shorter one up to the length. Tokens are the
bytes of UTF-8, or the characters of train, in which case token 1 stands for every other character, or those of a
tokenizer, which is read, or trained on the texts of train.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from workflow_lib.datasets._bpe import PaddedBpe
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums
from workflow_lib.plugins.section import ADDED, reject_unused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.datasets._labelled_files import Texts
    from workflow_lib.datasets._text_tokens import Tokens

log = logging.getLogger(__name__)

LIBRARY = ("asyncio", "email", "importlib", "multiprocessing", "unittest")
ROWS_AT_ONCE = 1024
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")


class Params(Checksums):
    """Settings of the texts and of their tokens."""

    path: Path | None = Field(
        None,
        description="CSV or Parquet file, or folder, relative to the project's root; null: passages of Python's "
        "standard library, with their package as the class",
    )
    text: str = Field("text", description="column of the texts, in a file")
    target: str = Field("label", description="column of the classes, in a file")
    split: str | None = Field(
        None, description="column with train, val or test for each row of a file; null: the splits are drawn"
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="character between the values of a CSV file")
    pattern: str = Field("*", min_length=1, description="pattern of the files in a folder, at any depth: `*.txt`")
    tokens: Literal["bytes", "characters", "bpe"] = Field(
        "bytes", description="unit of the texts; bpe is byte-pair encoding"
    )
    bpe: PaddedBpe = Field(PaddedBpe(), description="tokenizer of `tokens: bpe`", json_schema_extra=ADDED)
    length: int = Field(256, ge=1, le=1 << 20, description="largest number of tokens of a text; longer texts are cut")

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if self.tokens != "bpe":
            reject_unused(self, ("bpe",), "tokens: bpe")
        return self


def task(params: Params) -> Task:
    """Return `text_classification`."""
    return "text_classification"


def known(params: Params) -> DatasetFacts:
    """Return the kind of inputs, and the number of classes of the library."""
    return DatasetFacts("texts", classes=None if params.path else len(LIBRARY))


def look(params: Params, root: Path) -> DatasetFacts:
    """Return facts from the header and the first rows of a table, or from the names of the folders.

    Raises DataError if a column is missing or has no texts, or if a split has no folders of classes.
    """
    from workflow_lib.datasets._labelled_files import look_at_folder, look_at_table

    if params.path is None:
        return known(params)
    path = root / params.path
    return replace(known(params), classes=(look_at_folder if path.is_dir() else look_at_table)(params, path))


def open_source(params: Params, root: Path) -> Source:
    """Return the tokens of the texts, each of which was read and checked once."""
    from workflow_lib.datasets._labelled_files import read_texts

    if params.path is None and (params.sha256 or params.md5):
        raise DataError("data.params: sha256 and md5 need data.params.path; set it, or remove the checksums")
    if params.path is not None:
        params.verify(root / params.path)
    texts = read_texts(params, root)
    try:
        tokens = _learn(params, root, (text for block in _blocks(texts, "train") for text in block[1]))
        _check(params, texts, tokens)
        return _source(params, root, texts, tokens)
    except BaseException:
        texts.close()
        raise


def _source(params: Params, root: Path, texts: Texts, tokens: Tokens) -> Source:
    import numpy as np

    from workflow_lib.data import Source, content_digest
    from workflow_lib.datasets._text_tokens import filled

    def learn_from(rows: np.ndarray) -> Source:
        return _source(params, root, texts, _learn(params, root, _texts_of(texts, rows)))

    is_learned = params.tokens == "characters" or (params.tokens == "bpe" and params.bpe.path is None)
    digests = [file.digest for file in texts.files]
    return Source(
        task="text_classification",
        targets=texts.targets,
        read=lambda split, rows: filled(tokens, texts.read(split, rows), params.length),
        learn_from=learn_from if is_learned else None,
        is_thread_safe=True,
        classes=texts.classes,
        vocabulary=tokens.vocabulary,
        tokenizer=tokens.tokenizer,
        files=texts.files,
        content=content_digest(np.array(digests)),
        row_digests=texts.row_digests if params.tokens == "bytes" else {},  # others depend on more than the row
        row_name=texts.name,
        sample_names=texts.names,
        close=texts.close,
    )


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the texts of a file of the kind that was trained on, or of the files of a folder, or of one text file."""
    from workflow_lib.datasets._bpe import Tokenizer
    from workflow_lib.datasets._labelled_files import text_of
    from workflow_lib.datasets._new_texts import Reader
    from workflow_lib.datasets._text_tokens import Bytes, Characters, Pairs

    if params.tokens == "bpe":
        trained = "the tokenizer of the training"
        tokens: Tokens = Pairs(Tokenizer(manifest.tokenizer, params.bpe.mark, trained), trained)
    else:
        tokens = Bytes() if params.tokens == "bytes" else Characters(manifest.vocabulary)
    reader = Reader(tokens, params.length)
    is_table = path.suffix.lower() in TABLES and (params.path is not None and params.path.suffix.lower() in TABLES)
    if is_table and not path.is_dir():
        return reader.column(path, params.delimiter, params.text)
    return reader.files(path, params.pattern, text_of)


def _learn(params: Params, root: Path, texts: Iterable[str]) -> Tokens:
    """Return the tokens of the settings, learned from texts of train."""
    from workflow_lib.datasets._bpe import tokenizer_for
    from workflow_lib.datasets._text_tokens import Bytes, Characters, Pairs

    if params.tokens == "bytes":
        return Bytes()
    if params.tokens == "characters":
        return Characters.of(texts)
    lines = (line for text in texts for line in (text, "\n"))
    return Pairs(tokenizer_for(params.bpe, root, lines), str(params.bpe.path or "the trained tokenizer"))


def _blocks(texts: Texts, split: str) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield the numbers and the texts of the rows of a split."""
    import numpy as np

    for start in range(0, len(texts.targets[split]), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(texts.targets[split])))
        yield rows, texts.read(split, rows)


def _texts_of(texts: Texts, rows: np.ndarray) -> Iterator[str]:
    """Yield the texts of these rows of train."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield from texts.read("train", rows[start : start + ROWS_AT_ONCE])


def _check(params: Params, texts: Texts, tokens: Tokens) -> None:
    """Raise DataError for a text that is empty or has what fills short texts; warn of texts that are cut."""
    longer, total = 0, 0
    for split in texts.targets:
        for rows, found in _blocks(texts, split):
            for row, (size, problem) in zip(rows.tolist(), tokens.measure(found), strict=True):
                if problem:
                    raise DataError(f"{texts.name(split, row)}: the text {problem}")
                longer, total = longer + (size > params.length), total + 1
    if longer:
        unit = "tokens" if params.tokens == "bpe" else params.tokens
        log.warning(
            "%d of %d texts are longer than %d %s (data.params.length): their ends are cut",
            longer, total, params.length, unit,
        )  # fmt: skip
