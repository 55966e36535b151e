"""Texts, as bytes, characters or BPE tokens, for predicting the next token; by default sources of Python's library.

The files are concatenated in the order of their names, each followed by an <end> token, and cut into windows of
`context` + 1 tokens. The last token of a window is the first of the next: as a target in one, as an input in the other.

Folders train, val and test are the splits. If splits are drawn, a file is in one split only, since text from the same
file as the training text says little about other text; small neighbouring files stay together. A single file is cut
into passages of 16 contexts instead.
"""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from workflow_lib.datasets._bpe import Bpe
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums
from workflow_lib.plugins.section import ADDED, reject_unused

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.data.inputs import Named
    from workflow_lib.datasets._documents import Document, EncodedDocument, Stream, Tokens

    Read = tuple[Mapping[Path, Document | EncodedDocument], np.ndarray, tuple[str, ...], str]

log = logging.getLogger(__name__)

PASSAGE = 16  # contexts in a passage; files with fewer contexts stay together with their neighbours
LIBRARY = ("asyncio", "email", "http", "importlib", "json", "logging", "re", "urllib")  # 1.8 MB


class Params(Checksums):
    """Settings of the files and of their tokens."""

    path: Path | None = Field(
        None,
        description="file or folder, relative to the project's root; null: sources of Python's standard library",
    )
    pattern: str = Field("*", min_length=1, description="pattern of the files in the folder, at any depth: `*.txt`")
    tokens: Literal["bytes", "characters", "bpe"] = Field(
        "bytes", description="unit of prediction; characters and bpe (byte-pair encoding) need UTF-8"
    )
    bpe: Bpe = Field(Bpe(), description="tokenizer of `tokens: bpe`", json_schema_extra=ADDED)
    context: int = Field(128, ge=1, le=1 << 20, description="largest number of tokens to predict the next one from")
    split_by: Literal["file", "passage"] | None = Field(
        None, description="unit that is never divided between splits; null: file, or passage if there is a single file"
    )

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if self.tokens != "bpe":
            reject_unused(self, ("bpe",), "tokens: bpe")
        return self


def task(params: Params) -> Task:
    """Return `language`: the model predicts the next token."""
    return "language"


def look(params: Params, root: Path) -> DatasetFacts:
    """Return the kind of the inputs. Raises DataError if a split has no file that matches the pattern."""
    from workflow_lib.datasets._folder import split_folders

    if params.path is not None and not (root / params.path).is_file():
        for folder in split_folders(root / params.path).values():
            _check_any(folder, params, _matching(folder, params))
    return DatasetFacts("texts")


def open_source(params: Params, root: Path) -> Source:
    """Return windows of the files, each of which was read and checked once."""
    import numpy as np

    from workflow_lib.data import Source, content_digest
    from workflow_lib.datasets._folder import name_below

    found = _find_files(params, root)
    read = _encoded if params.tokens == "bpe" else _coded
    documents, alphabet, vocabulary, tokenizer = read(params, root, found)
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

    def named(split: str, rows: np.ndarray) -> dict[str, list[Any]]:
        found = []
        base = Path(sysconfig.get_path("stdlib")) if params.path is None else root / params.path
        for number, row in zip(np.searchsorted(ends[split], rows, side="right"), rows.tolist(), strict=True):
            stream = streams[split][number]
            found.append(stream.place(row - int(ends[split][number]) + len(stream)))
        files = [name_below(path, base) for path, _ in found]
        return {"file": files, "token": [token for _, token in found]}

    rows = np.arange(ends["train"][-1])
    return Source(
        task="language",
        targets={split: np.empty((of_split[-1], 0), np.int64) for split, of_split in ends.items()},
        groups=rows // PASSAGE if by_passage else np.searchsorted(ends["train"], rows, side="right"),
        read=windows,
        sample_names=named,
        is_thread_safe=True,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        files=tuple(document.file for document in documents.values()),
        content=content_digest(np.array([document.file.digest for document in documents.values()])),
    )


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the passages of a text, or of the texts of a folder that match `pattern`: at most `context` tokens each.

    Each file is read on its own and ends with <end>. A passage is named by its file and its first token in it.
    """
    import numpy as np

    from workflow_lib.data import Inputs
    from workflow_lib.datasets._documents import passages
    from workflow_lib.datasets._folder import files_below

    if not path.is_dir():
        paths = [path]
    elif not (paths := [file for file in files_below(path) if file.relative_to(path).match(params.pattern)]):
        raise DataError(f"{path}: no file matches `{params.pattern}` (data.params.pattern)")
    known = _known_tokens(params, manifest)

    def read(size: int) -> Iterator[Named]:
        for file in paths:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            document, alphabet = known(file)
            if not document.size:
                raise DataError(f"{file}: is empty")
            for starts, codes in passages(document, params.context, size):
                found = np.searchsorted(alphabet, codes).astype(manifest.dtype)
                yield {"file": [name] * len(starts), "token": starts}, found

    return Inputs(read=read)


def _known_tokens(
    params: Params, manifest: Manifest
) -> Callable[[Path], tuple[Document | EncodedDocument, np.ndarray]]:
    """Return a function that reads a file into tokens of the training: the document, and the codes of all tokens."""
    import numpy as np

    from workflow_lib.datasets._bpe import Tokenizer
    from workflow_lib.datasets._documents import encode_documents

    if params.tokens == "bpe":
        tokenizer = Tokenizer(manifest.tokenizer, params.bpe.mark, "the tokenizer of the training")
        return lambda path: (encode_documents(tokenizer, [path])[path], np.arange(tokenizer.size))
    tokens: Tokens = "characters" if params.tokens == "characters" else "bytes"
    if tokens == "bytes" and len(manifest.vocabulary) > 256:
        tokens = "any bytes"
    alphabet, _ = _vocabulary(tokens, set(manifest.vocabulary[:-1]))
    return lambda path: (_known_document(path, tokens, manifest), alphabet)


def _known_document(path: Path, tokens: Tokens, manifest: Manifest) -> Document:
    """Return the text in a file. Raises DataError if it has a token that training did not have, or none."""
    from workflow_lib.datasets._documents import index_document

    document, seen = index_document(path, tokens)
    if document.tokens == "any bytes" and tokens == "bytes":
        raise DataError(f"{path}: has the byte 0xFF, which no text of the training had; is it UTF-8?")
    if unknown := sorted(seen - set(manifest.vocabulary)):
        some = ", ".join(map(repr, unknown[:5]))
        raise DataError(f"{path}: has characters that no text of the training had: {some}; remove or replace them")
    return replace(document, tokens=tokens)


def _coded(params: Params, root: Path, found: dict[str, list[Path]]) -> Read:
    """Return the files as bytes or characters."""
    from workflow_lib.datasets._documents import index_document
    from workflow_lib.datasets._folder import map_files

    tokens: Tokens = "characters" if params.tokens == "characters" else "bytes"
    indexed = map_files(lambda path: index_document(path, tokens), [path for paths in found.values() for path in paths])
    documents = {document.file.path: document for document, _ in indexed}
    if binary := next((document for document in documents.values() if document.tokens == "any bytes"), None):
        log.warning("%s: has the byte 0xFF, which UTF-8 text never has: <end> becomes a 257th token", binary.file.path)
        tokens = "any bytes"
        documents = {path: replace(document, tokens=tokens) for path, document in documents.items()}
    return documents, *_vocabulary(tokens, set().union(*(seen for _, seen in indexed))), ""


def _encoded(params: Params, root: Path, found: dict[str, list[Path]]) -> Read:
    """Return the files as tokens of a tokenizer, which is read, or trained on the files of train."""
    import numpy as np

    from workflow_lib.datasets._bpe import tokenizer_for
    from workflow_lib.datasets._documents import decoded, encode_documents

    if params.bpe.path is None and set(found) == {"train"}:
        log.info("the tokenizer is trained on all files, also on those from which val and test are drawn")
    texts = (text for path in found["train"] for text in (*decoded(path), "\n"))
    tokenizer = tokenizer_for(params.bpe, root, texts)
    documents = encode_documents(tokenizer, [path for paths in found.values() for path in paths])
    return documents, np.arange(tokenizer.size), tokenizer.names(), tokenizer.content


def _find_files(params: Params, root: Path) -> dict[str, list[Path]]:
    """Return the files of each split, sorted by name."""
    from workflow_lib.datasets._folder import split_folders

    if params.path is None and (params.sha256 or params.md5):
        raise DataError("data.params: sha256 and md5 need data.params.path; set it, or remove the checksums")
    if params.path is None:
        library = Path(sysconfig.get_path("stdlib"))
        return {"train": [path for name in LIBRARY for path in sorted((library / name).rglob("*.py"))]}
    path = root / params.path
    params.verify(path)
    if path.is_file():
        return {"train": [path]}
    found = {}
    for split, folder in split_folders(path).items():
        found[split] = list(_matching(folder, params))
        _check_any(folder, params, found[split])
    return found


def _matching(folder: Path, params: Params) -> Iterator[Path]:
    from workflow_lib.datasets._folder import files_below

    return (file for file in files_below(folder) if file.relative_to(folder).match(params.pattern))


def _check_any(folder: Path, params: Params, files: Iterable[Path]) -> None:
    if next(iter(files), None) is None:
        raise DataError(f"{folder}: no file matches `{params.pattern}` (data.params.pattern)")


def _vocabulary(tokens: str, seen: set[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the codes of all tokens, ascending, and a readable name for each."""
    import numpy as np

    from workflow_lib.datasets._documents import END, code_points

    if tokens != "characters":
        end = END[tokens]
        names = [chr(code) if code < 0x80 else f"<{code:02x}>" for code in range(end)]
        return np.arange(end + 1, dtype=np.uint8 if end < 256 else np.uint16), (*names, "<end>")
    characters = sorted(seen)
    return np.append(code_points("".join(characters)), np.uint32(END["characters"])), (*characters, "<end>")


def _streams(documents: list[Document | EncodedDocument], context: int, *, in_one: bool) -> list[Stream]:
    """Return streams of neighbouring documents: a single stream, or as few in each as fill PASSAGE contexts."""
    from workflow_lib.datasets._documents import Stream

    groups: list[list[Document | EncodedDocument]] = [[]]
    for document in documents:
        if not in_one and sum(document.size + 1 for document in groups[-1]) > PASSAGE * context:
            groups.append([])
        groups[-1].append(document)
    if len(groups) > 1 and sum(document.size + 1 for document in groups[-1]) <= PASSAGE * context:
        groups[-2:] = [groups[-2] + groups[-1]]
    streams = [Stream(group, context) for group in groups]
    if int(streams[0].ends[-1]) <= context:
        raise DataError(
            f"{documents[0].file.path}: has {streams[0].ends[-1]} tokens with {len(documents) - 1} more files; "
            f"a context of {context} needs more tokens: lower data.params.context"
        )
    return streams
