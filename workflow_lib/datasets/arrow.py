"""Arrow and Parquet files, read in place: texts, tokens, images or numbers in columns.

Also data sets of Hugging Face that `save_to_disk` has written. Folders or first words of the file names are the splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from workflow_lib.datasets._bpe import Bpe
from workflow_lib.datasets._images import ImageSettings
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.section import NOT_IDENTITY, reject_unused

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.data.inputs import Named
    from workflow_lib.datasets._arrow_files import Table

    SampleNames = Callable[[str, np.ndarray], Mapping[str, Any]]

PASSAGE = 16  # contexts: this much text is never divided between splits that are drawn


class Params(ImageSettings):
    """Settings of the files, and of their columns: one of text, tokens, image and numbers gives the inputs."""

    path: Path = Field(description="a file, or a folder of .arrow and .parquet files at any depth")
    text: str | None = Field(None, description="column of texts, to predict the next token of")
    tokens: str | None = Field(None, description="column of lists of tokens, to predict the next one of")
    image: str | None = Field(None, description="column of images, as the bytes of their files")
    numbers: tuple[str, ...] = Field((), description="columns of numbers to predict from")
    target: str | None = Field(None, description="column to predict, with image or numbers")
    kind: Literal["classification", "regression"] = Field("classification", description="task: classes or numbers")
    classes: tuple[str, ...] = Field((), description="names of the classes 0, 1, ...; default: those in the files")
    context: int = Field(128, ge=1, le=1 << 20, description="largest number of tokens to predict the next one from")
    stride: int | None = Field(None, ge=1, description="tokens from one window to the next; null: context")
    vocabulary: int | None = Field(None, ge=2, le=1 << 31, description="number of different tokens, with `tokens`")
    separator: int | None = Field(None, ge=0, description="token to add after each row, with `tokens`")
    tokenizer: Path | None = Field(
        None,
        description="tokenizer.json, or a folder of save_pretrained: names of `tokens` for the report; null: numbers",
        json_schema_extra=NOT_IDENTITY,
    )
    bpe: Bpe = Field(Bpe(), description="tokenizer of the texts")

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if not self.text:
            reject_unused(self, ("bpe",), "text")
        if not self.tokens:
            reject_unused(self, ("tokenizer",), "tokens")
        if not (self.text or self.tokens):
            reject_unused(self, ("context", "stride"), "text or tokens")
        if not self.image:
            reject_unused(self, ("size", "channels", "background", "resize"), "image")
        if not self.target:
            reject_unused(self, ("kind", "classes"), "target")
        if self.kind == "regression":
            reject_unused(self, ("classes",), "kind: classification")
        return self


def task(params: Params) -> Task:
    """Return `language` for texts and tokens, else the task of the settings."""
    return "language" if params.text or params.tokens else params.kind


def known(params: Params) -> DatasetFacts:
    """Return the kind of the inputs."""
    if params.text or params.tokens:
        return DatasetFacts("texts")
    if params.image:
        return DatasetFacts("images", size=params.shape, channels=3 if params.channels == "rgb" else 1)
    return DatasetFacts("tables")


def look(params: Params, root: Path) -> DatasetFacts:
    """Return facts from the headers of the first files of each split. Raises DataError for columns that do not fit."""
    from workflow_lib.datasets._arrow_columns import class_names
    from workflow_lib.datasets._arrow_files import check_alike
    from workflow_lib.datasets._splits import LOOKED_AT

    facts = known(params)
    first: tuple[Path, Any] | None = None
    for split, paths in _files(params, root).items():
        schemas = [_checked(params, path) for path in paths[:LOOKED_AT]]
        schema = schemas[0]
        first = first or (paths[0], schema)
        for path, other in zip(paths, schemas, strict=False):
            check_alike(path, other, first, _columns(params))
        if split == "train" and params.target and params.kind == "classification":
            names = params.classes or class_names(schema.metadata or {}, params.target)
            facts = replace(facts, classes=len(names) or None)
    return facts


def _files(params: Params, root: Path) -> dict[str, list[Path]]:
    """Return the files of each split."""
    from workflow_lib.datasets._arrow_files import SUFFIXES, saved_files
    from workflow_lib.datasets._splits import files_of_splits

    path = root / params.path
    return {split: saved_files(path, files) for split, files in files_of_splits(path, SUFFIXES).items()}


def _checked(params: Params, path: Path) -> Any:
    """Return the schema of a file. Raises DataError for columns that are missing or do not fit."""
    from workflow_lib.datasets._arrow_columns import check_images, check_numbers, check_target
    from workflow_lib.datasets._arrow_files import checked_schema
    from workflow_lib.datasets._arrow_texts import check_texts, check_tokens

    columns = _columns(params)
    schema = checked_schema(path, columns)
    checks = {params.text: check_texts, params.tokens: check_tokens, params.image: check_images}
    try:
        for name in columns[:-1] if params.target else columns:
            checks.get(name, check_numbers)(name, schema.field(name).type)
        if params.target:
            check_target(params.target, schema.field(params.target).type, params.kind)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return schema


def open_source(params: Params, root: Path, index: Mapping[str, np.ndarray] | None = None) -> Source:
    """Return the rows of the files; `index` has the places of the batches, and the targets or the ends of the texts."""
    import numpy as np

    from workflow_lib.data import MappedFiles
    from workflow_lib.datasets._arrow_files import Table, index_batches

    columns = _columns(params)
    found = _files(params, root)
    mapped = MappedFiles([path for paths in found.values() for path in paths])
    firsts = np.cumsum([0, *map(len, found.values())]).tolist()
    arrays = dict(index or {})
    tables: dict[str, Table] = {}
    every = [path for paths in found.values() for path in paths]
    if index is None:
        _checked(params, every[0])  # all others must be like it
    batches = index_batches(every, columns) if index is None else {}
    for number, split in enumerate(found):
        if index is None:
            mine = (batches["file"] >= firsts[number]) & (batches["file"] < firsts[number + 1])
            arrays |= {f"{split}.{name}": values[mine] for name, values in batches.items()}
            arrays[f"{split}.file"] -= firsts[number]
        own = {name: arrays[f"{split}.{name}"] for name in ("file", "place", "bytes", "rows")}
        tables[split] = Table(mapped, firsts[number], own, columns)
    make = _language if task(params) == "language" else _samples
    source = make(params, root, tables, arrays)
    named = _names(root / params.path, tables, source.sample_names)
    return replace(source, mapped=mapped, sample_names=named, is_thread_safe=True, close=mapped.close)


def _names(base: Path, tables: Mapping[str, Table], rows_of: SampleNames | None) -> SampleNames:
    """Return a function that names samples by file and row; `rows_of` gives the row in which each sample begins."""
    from workflow_lib.datasets._folder import name_below

    def named(split: str, samples: np.ndarray) -> dict[str, Any]:
        columns = {"row": samples} if rows_of is None else dict(rows_of(split, samples))
        paths, columns["row"] = tables[split].places(columns["row"])
        return {"file": [name_below(path, base) for path in paths], **columns}

    return named


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the rows of a file, or of the files of a folder, named by file and row, and by their first token there.

    The files need the columns of the inputs only. The rows of a file of texts follow each other, as in the training.
    """
    from workflow_lib.data import Inputs, MappedFiles
    from workflow_lib.datasets._arrow_files import SUFFIXES, Table, index_batches, saved_files
    from workflow_lib.datasets._splits import new_files

    found = new_files(path, SUFFIXES)
    saved = set(saved_files(path, found.values()))
    files = {name: file for name, file in found.items() if file in saved}
    columns = _columns(params)[: -1 if params.target else None]
    parts = _new_passages if task(params) == "language" else _new_samples

    def read(size: int) -> Iterator[Named]:
        for name, file in files.items():
            with closing(MappedFiles([file])) as mapped:
                table = Table(mapped, 0, index_batches([file], columns), columns)
                try:
                    for names, inputs in parts(params, table, manifest, size):
                        yield {"file": [name] * len(inputs), **names}, inputs
                except DataError as error:
                    raise DataError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from error

    return Inputs(read=read)


def _new_samples(params: Params, table: Table, manifest: Manifest, size: int) -> Iterator[Named]:
    """Yield images or numbers with the numbers of their rows."""
    import numpy as np

    from workflow_lib.datasets._arrow_columns import read_images, read_numbers

    for start in range(0, len(table), size):
        rows = np.arange(start, min(start + size, len(table)))
        found = [
            read_images(*part, params) if params.image else read_numbers(part[0], part[1], params.numbers)
            for part in table.parts(rows)
        ]
        yield {"row": rows}, np.concatenate(found)


def _new_passages(params: Params, table: Table, manifest: Manifest, size: int) -> Iterator[Named]:
    """Yield passages of at most `context` tokens, named by the row in which they begin and their first token in it."""
    import numpy as np

    from workflow_lib.datasets._arrow_texts import Windows, encoder
    from workflow_lib.datasets._documents import passages

    stored = {"tokenizer": np.frombuffer(manifest.tokenizer.encode(), np.uint8)}
    encode, *_ = encoder(params, Path(), {}, stored)
    windows = Windows.of_new(table, encode, params)
    for starts, tokens in passages(windows, params.context, size):
        rows, places = windows.places_of(starts)
        yield {"row": rows, "token": places}, tokens.astype(manifest.dtype)


def _columns(params: Params) -> list[str]:
    """Return the columns that are read: the inputs, then the target. Raises DataError for settings that do not fit."""
    given = {name: getattr(params, name) for name in ("text", "tokens", "image", "numbers") if getattr(params, name)}
    if len(given) != 1:
        what = ", ".join(given) or "none"
        raise DataError(f"data.params: {what} is set; allowed: one of text, tokens, image and numbers gives the inputs")
    (name, value), is_language = next(iter(given.items())), bool(params.text or params.tokens)
    if is_language == bool(params.target):
        raise DataError(f"data.params.target {'is not for' if is_language else 'is missing beside'} `{name}`")
    if params.image and params.shape is None:
        raise DataError("data.params.size is missing: images are scaled to one size when they are read")
    if bool(params.tokens) != bool(params.vocabulary):
        raise DataError("data.params: tokens and vocabulary, the number of different tokens, are set together")
    if params.separator is not None and params.separator >= (params.vocabulary or 0):
        raise DataError("data.params.separator must be below data.params.vocabulary, and goes with tokens")
    inputs = list(value) if name == "numbers" else [value]
    return inputs + ([params.target] if params.target else [])


def _samples(params: Params, root: Path, tables: Mapping[str, Table], arrays: dict[str, Any]) -> Source:
    """Return images or numbers with their targets."""
    import numpy as np

    from workflow_lib.data import Feature, Source
    from workflow_lib.datasets._arrow_columns import (
        class_names,
        read_images,
        read_numbers,
        targets_of,
        warn_of_merged,
    )
    from workflow_lib.datasets._labels import from_index, to_index

    target = str(params.target)
    if not any(name.endswith(".targets") for name in arrays):
        names = params.classes or (
            class_names(tables["train"].metadata(), target) if params.kind == "classification" else ()
        )
        values = {split: targets_of(table, target) for split, table in tables.items()}
        arrays |= to_index(values, params.kind, names, lambda split, row: tables[split].where(row))
        for table in tables.values():
            warn_of_merged(table, params.numbers)
    targets, classes = from_index(arrays, tables)

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                read_images(*part, params) if params.image else read_numbers(part[0], part[1], params.numbers)
                for part in tables[split].parts(rows)
            ]
        )

    return Source(
        task=params.kind,
        targets=targets,
        read=read,
        classes=classes,
        features=tuple(map(Feature, params.numbers)),
        scale=255.0 if params.image else 1.0,
        index=arrays,
    )


def _language(params: Params, root: Path, tables: Mapping[str, Table], arrays: dict[str, Any]) -> Source:
    """Return windows of all rows, one after the other."""
    import numpy as np

    from workflow_lib.data import Source, content_digest
    from workflow_lib.datasets._arrow_texts import Windows, encoder

    encode, vocabulary, tokenizer = encoder(params, root, tables, arrays)
    windows = {split: Windows(table, encode, params) for split, table in tables.items()}
    for split, of_split in windows.items():
        if f"{split}.ends" not in arrays:
            arrays[f"{split}.ends"] = of_split.measure()
        of_split.set_ends(split, arrays[f"{split}.ends"])
    dtype = np.uint8 if len(vocabulary) <= 256 else np.int32
    return Source(
        task="language",
        targets={split: np.empty((len(of_split), 0), np.int64) for split, of_split in windows.items()},
        group_rows=-(-PASSAGE * params.context // (params.stride or params.context)),
        read=lambda split, rows: windows[split].read(rows).astype(dtype),
        sample_names=lambda split, rows: dict(zip(("row", "token"), windows[split].places(rows), strict=True)),
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        content=content_digest(np.frombuffer(tokenizer.encode(), np.uint8)),
        index=arrays,
    )
