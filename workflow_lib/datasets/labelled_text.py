"""Texts with a class each: a CSV or Parquet file, or a folder of text files; without a path, sources of Python.

reviews.csv                                   a column of texts, a column of classes
reviews/good/1.txt, reviews/bad/x/2.txt       a folder for each class; the splits are drawn
reviews/train/good/1.txt, reviews/test/...    the folders are the splits; a missing one is drawn from train

Inputs are tokens [n, length]. A longer text is cut, and token 0 fills a shorter one up to the length. Tokens are the
bytes of UTF-8, or the characters of train, in which case token 1 stands for every other character.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source, SourceFile

log = logging.getLogger(__name__)

LIBRARY = ("asyncio", "email", "importlib", "multiprocessing", "unittest")
PASSAGES = 6  # of each file of the library
PAD, UNKNOWN = "<pad>", "<unknown>"
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
    tokens: Literal["bytes", "characters"] = Field("bytes", description="unit of the texts")
    length: int = Field(256, ge=1, le=1 << 20, description="largest number of tokens of a text; longer texts are cut")


def task(params: Params) -> Task:
    """Return `text_classification`."""
    return "text_classification"


def known(params: Params) -> DatasetFacts:
    """Return the kind of inputs, and the number of classes of the library."""
    return DatasetFacts("texts", classes=None if params.path else len(LIBRARY))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts as they are in their files: `read` returns those of some rows of a split."""

    targets: dict[str, np.ndarray]
    classes: tuple[str, ...]
    read: Callable[[str, np.ndarray], list[str]]
    files: tuple[SourceFile, ...]
    name: Callable[[str, int], str]
    names: Callable[[str, np.ndarray], dict[str, Any]]
    row_digests: dict[str, list[str]]
    close: Callable[[], None] = lambda: None


def open_source(params: Params, root: Path) -> Source:
    """Return the tokens of the texts, each of which was read and checked once."""
    if params.path is None and (params.sha256 or params.md5):
        raise DataError("data.params: sha256 and md5 need data.params.path; set it, or remove the checksums")
    if params.path is None:
        texts = _library(params)
    else:
        params.verify(root / params.path)
        texts = (_folder if (root / params.path).is_dir() else _table)(params, root / params.path)
    try:
        return _source(params, texts, _check(params, texts))
    except BaseException:
        texts.close()
        raise


def _source(params: Params, texts: Texts, seen: set[str]) -> Source:
    """Return the source whose vocabulary has the seen characters."""
    import numpy as np

    from workflow_lib.data import Source, content_digest

    vocabulary = _vocabulary(params.tokens, seen)
    encode = _encoder(params, vocabulary)

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        return encode(texts.read(split, rows))

    def learn_from(rows: np.ndarray) -> Source:
        return _source(params, texts, _characters(texts, rows))

    digests = [file.digest for file in texts.files]
    return Source(
        task="text_classification",
        targets=texts.targets,
        read=read,
        learn_from=learn_from if params.tokens == "characters" else None,
        is_thread_safe=True,
        classes=texts.classes,
        vocabulary=vocabulary,
        files=texts.files,
        content=content_digest(np.array(digests)),
        row_digests={} if params.tokens == "characters" else texts.row_digests,  # which depend on the rows of train
        row_name=texts.name,
        sample_names=texts.names,
        close=texts.close,
    )


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the texts of a file of the kind that was trained on, or of the files of a folder, or of one text file."""
    from workflow_lib.datasets._new_texts import Reader

    reader = Reader(_encoder(params, manifest.vocabulary), lambda text: _size(params, text), params.length)
    is_table = path.suffix.lower() in TABLES and (params.path is not None and params.path.suffix.lower() in TABLES)
    if is_table and not path.is_dir():
        return reader.column(path, params.delimiter, params.text)
    return reader.files(path, params.pattern, _text)


def _encoder(params: Params, vocabulary: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function that returns the tokens of texts [n, length]."""
    import numpy as np

    kind = np.uint8 if len(vocabulary) <= 256 else np.int32
    number_of = {character: number for number, character in enumerate(vocabulary)}

    def encode(texts: Sequence[str]) -> np.ndarray:
        tokens = np.zeros((len(texts), params.length), kind)
        for place, text in enumerate(texts):
            if params.tokens == "bytes":
                codes = np.frombuffer(text.encode()[: params.length], np.uint8)
            else:
                codes = np.array([number_of.get(character, 1) for character in text[: params.length]], kind)
            tokens[place, : len(codes)] = codes
        return tokens

    return encode


def _size(params: Params, text: str) -> int:
    """Return the number of tokens of a text before it is cut."""
    return len(text.encode()) if params.tokens == "bytes" else len(text)


def _vocabulary(tokens: str, seen: set[str]) -> tuple[str, ...]:
    """Return a readable name for each token; no byte of UTF-8 text is 0, which stands for the filled end."""
    if tokens == "characters":
        return (PAD, UNKNOWN, *sorted(seen))
    return (PAD, *(chr(code) if code < 0x80 else f"<{code:02x}>" for code in range(1, 256)))


def _rows_of(texts: Texts, split: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each row of a split."""
    import numpy as np

    for start in range(0, len(texts.targets[split]), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(texts.targets[split])))
        yield from zip(rows.tolist(), texts.read(split, rows), strict=True)


def _check(params: Params, texts: Texts) -> set[str]:
    """Return the characters of train. Raises DataError for a text that is empty or has the character 0."""
    seen: set[str] = set()
    longer, total = 0, 0
    for split in texts.targets:
        for row, text in _rows_of(texts, split):
            if not text:
                raise DataError(f"{texts.name(split, row)}: the text is empty; fill it, or remove it")
            if "\0" in text:
                raise DataError(f"{texts.name(split, row)}: the text has the character 0, which no text has; remove it")
            longer, total = longer + (_size(params, text) > params.length), total + 1
            if split == "train" and params.tokens == "characters":
                seen |= set(text)
    if longer:
        log.warning(
            "%d of %d texts are longer than %d %s (data.params.length): their ends are cut",
            longer, total, params.length, params.tokens,
        )  # fmt: skip
    return seen


def _characters(texts: Texts, rows: np.ndarray) -> set[str]:
    """Return the characters of these rows of train."""
    seen: set[str] = set()
    for start in range(0, len(rows), ROWS_AT_ONCE):
        seen.update(*texts.read("train", rows[start : start + ROWS_AT_ONCE]))
    return seen


def _folder(params: Params, path: Path) -> Texts:
    """Return the texts of the files in the folders of the classes."""
    import numpy as np

    from workflow_lib.data import SourceFile
    from workflow_lib.datasets._folder import class_folders, map_files, split_folders

    found = {split: class_folders(folder, params.pattern) for split, folder in split_folders(path).items()}
    classes = tuple(found["train"])
    if len(classes) < 2:
        raise DataError(
            f"{path}: needs folders of texts for at least two classes; it has {', '.join(classes) or 'none'}"
        )
    for split, folders in found.items():
        for name in sorted(set(folders) - set(classes)):
            raise DataError(f"{path / split / name}: is not a class of train; train must have every class")
    paths = {split: [path for files in folders.values() for path in files] for split, folders in found.items()}
    listed = [path for of_split in paths.values() for path in of_split]
    files = tuple(map_files(SourceFile.of, listed))
    digests = {file.path: file.digest for file in files}
    return Texts(
        targets={
            split: np.array([classes.index(name) for name, files in folders.items() for _ in files], np.int64)
            for split, folders in found.items()
        },
        classes=classes,
        read=lambda split, rows: [_text(paths[split][row]) for row in rows],
        files=files,
        name=lambda split, row: str(paths[split][row]),
        names=lambda split, rows: {"file": [paths[split][row].relative_to(path).as_posix() for row in rows.tolist()]},
        row_digests={split: [digests[path] for path in of_split] for split, of_split in paths.items()},
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        where = f"{path}: not UTF-8 at byte {error.start}"
        raise DataError(f"{where}; convert the file, or exclude it with data.params.pattern") from error


def _library(params: Params) -> Texts:
    """Return passages of Python's standard library; of five files of a package, one is in val and one in test."""
    import sysconfig

    import numpy as np

    from workflow_lib.data import SourceFile

    passages: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    targets: dict[str, list[int]] = {split: [] for split in passages}
    files = []
    for number, package in enumerate(LIBRARY):
        for place, path in enumerate(sorted((Path(sysconfig.get_path("stdlib")) / package).glob("*.py"))):
            split = {3: "val", 4: "test"}.get(place % 5, "train")
            size = path.stat().st_size // params.length
            starts = [start * params.length for start in range(min(size, PASSAGES))]
            passages[split] += [(path, start) for start in starts]
            targets[split] += [number] * len(starts)
            files += [SourceFile.of(path)] * bool(starts)

    def read(split: str, rows: np.ndarray) -> list[str]:
        texts = []
        for row in rows:
            path, start = passages[split][row]
            with path.open("rb") as file:
                file.seek(start)
                texts.append(file.read(params.length).decode(errors="ignore"))
        return texts

    def named(split: str, rows: np.ndarray) -> dict[str, Any]:
        places = [passages[split][row] for row in rows.tolist()]
        library = Path(sysconfig.get_path("stdlib"))
        return {
            "file": [path.relative_to(library).as_posix() for path, _ in places],
            "byte": [start for _, start in places],
        }

    return Texts(
        targets={split: np.array(numbers, np.int64) for split, numbers in targets.items()},
        classes=LIBRARY,
        read=read,
        files=tuple(files),
        name=lambda split, row: f"{passages[split][row][0]}, byte {passages[split][row][1]}",
        names=named,
        row_digests={},
    )


def _table(params: Params, path: Path) -> Texts:
    """Return the texts of a column of a file."""
    import itertools

    import numpy as np

    from workflow_lib.data import SPLITS, SourceFile
    from workflow_lib.datasets._notation import Notation
    from workflow_lib.datasets._tables import check_column, open_table, splits_of
    from workflow_lib.datasets._targets import Classes

    table = open_table(path, params.delimiter)
    try:
        for setting, name in (("text", params.text), ("target", params.target), ("split", params.split)):
            if name is not None:
                check_column(table, setting, name)
        target = Classes(path, params.target, Notation(frozenset({""})), is_listed=True)
        rows: dict[str, list[Any]] = {split: [] for split in SPLITS}
        for piece in table.scan([params.text, params.target, *([params.split] if params.split else [])]):
            splits = splits_of(path, params.split, piece)
            if isinstance(piece.values[params.text], np.ndarray):
                raise DataError(f"{path}, column `{params.text}`: has numbers, not texts (data.params.text)")
            for text, place in zip(piece.values[params.text], piece.places, strict=True):
                if not text:
                    raise DataError(f"{path}, {place}, column `{params.text}`: the text is empty; remove the row")
            target.add(piece, splits == "train")
            for split in SPLITS:
                rows[split].append(piece.rows[splits == split])
        targets = target.encoded()
    except BaseException:
        table.close()
        raise
    where = {split: np.concatenate(parts) for split, parts in rows.items() if any(map(len, parts))}

    def read(split: str, wanted: np.ndarray) -> list[str]:
        pieces = table.take(where[split][wanted], [params.text])
        return [str(text) for text in itertools.chain.from_iterable(piece.values[params.text] for piece in pieces)]

    return Texts(
        targets={split: targets[places] for split, places in where.items()},
        classes=target.classes,
        read=read,
        files=(SourceFile.of(path),),
        name=lambda split, row: f"{path}, row {int(where[split][row])}",
        names=lambda split, rows: {"row": where[split][rows]},
        row_digests={},
        close=table.close,
    )
