"""Settings for Arrow and Parquet files and for tar files, guessed from the first rows of the training split."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from workflow_lib.datasets._splits import files_of_splits
from workflow_lib.errors import DataError
from workflow_lib.start.guess import Guess, counts_of, of_classes, of_images, of_language
from workflow_lib.start.tables import MOST_CLASSES, TARGETS
from workflow_lib.text import count

LOOKED_AT = 1000  # rows or samples
LARGEST_BYTES, MOST_BYTES = 1 << 28, 1 << 30  # of a file in a tar file, and of all samples that are looked at


def of_arrow(path: Path) -> Guess:
    """Return settings for an Arrow or Parquet file, or a folder of them. Raises DataError if nothing can be learned."""
    from workflow_lib.datasets._arrow_columns import is_number
    from workflow_lib.datasets._arrow_files import SUFFIXES, pyarrow, saved_files

    files = {split: saved_files(path, found) for split, found in files_of_splits(path, SUFFIXES).items()}
    rows = _first_rows(files["train"][0])
    if not len(rows):
        raise DataError(f"--data {path}: has no rows of train")
    types = pyarrow().types
    kinds = {field.name: field.type for field in rows.schema}
    images = [n for n, kind in kinds.items() if types.is_binary(kind) or types.is_large_binary(kind)]
    images += [n for n, kind in kinds.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    tokens = [n for n, kind in kinds.items() if _is_list(kind) and types.is_integer(kind.value_type)]
    texts = [n for n, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    numbers = [n for n, kind in kinds.items() if is_number(kind)]
    targets = [n for name in TARGETS for n in (*numbers, *texts) if n.lower() == name]
    found = [f"{count(len(files['train']), 'file')} of train, {count(len(kinds), 'column')}"]
    found += [f"splits: {', '.join(files)}"] if len(files) > 1 else []
    if images and (targets or numbers or texts):
        target = (targets or numbers or texts)[0]
        values = rows.column(images[0]).to_pylist()
        contents = [value.get("bytes") if isinstance(value, dict) else value for value in values]
        made = of_images(path, {f"row {n}": BytesIO(content) for n, content in enumerate(contents) if content})
        made.data = {"name": "arrow", "params": made.data["params"] | {"image": images[0], "target": target}}
    elif tokens:
        column = next((name for name in tokens if name in ("input_ids", "tokens")), tokens[0])
        largest = max(max(row, default=0) for row in rows.column(column).to_pylist() if row is not None)
        params = {"path": str(path), "tokens": column, "vocabulary": largest + 1}
        made = of_language({"name": "arrow", "params": params})
        made.odd.append(
            f"data.params.vocabulary is 1 more than the largest token of the first {len(rows):,} rows; set it to the "
            f"size of the tokenizer"
        )
        return _with(made, found)
    elif texts and not (targets and numbers):
        column = next((name for name in texts if name in ("text", "content")), texts[0])
        made = of_language({"name": "arrow", "params": {"path": str(path), "text": column}})
        if len(kinds) > 1:
            made.odd.append(
                f"a language model of column {column!r}; labelled_text predicts classes from one Parquet file"
            )
        return _with(made, found)
    elif len(numbers) > 1:
        target = (targets or numbers[-1:])[0]
        params = {"path": str(path), "numbers": [name for name in numbers if name != target], "target": target}
        made = Guess(
            {"name": "arrow", "params": params},
            {
                "model": {"name": "tabular"},
                "training": {"epochs": 50, "batch_size": 64, "early_stopping": {"metric": "val_loss", "patience": 10}},
            },
        )
        if left := [name for name in kinds if name not in numbers and name != target]:
            made.odd.append(f"left out: {', '.join(left)}: no numbers")
    else:
        raise DataError(f"--data {path}: no column of images, tokens, texts or numbers among {', '.join(kinds)}")
    _of_target(made, rows.column(target).to_pylist(), len(files["train"]))
    return _with(made, [*found, f"target {target!r}: {made.data['params'].get('kind', 'classification')}"])


def has_values_of_no_table(path: Path) -> bool:
    """Return True if a Parquet file has a column of lists or bytes, which tables do not have."""
    from workflow_lib.datasets._arrow_files import checked_schema, pyarrow

    types, kinds = pyarrow().types, [field.type for field in checked_schema(path, ())]
    return any(_is_list(kind) or types.is_struct(kind) or types.is_binary(kind) for kind in kinds)


def of_tars(path: Path) -> Guess:
    """Return settings for a tar file of images, or a folder of them. Raises DataError if there is none that is read."""
    from workflow_lib.datasets._tar_members import IMAGES

    files = files_of_splits(path, (".tar",))
    samples = list(islice(_samples(files["train"][0]), LOOKED_AT))
    targets = [end for end in ("cls", "txt", "json") if samples and all(end in sample for sample in samples)]
    images = {name: BytesIO(sample[end]) for name, end, sample in _images_in(samples, IMAGES)}
    if not images or not targets:
        ends = ", ".join(sorted({end for sample in samples for end in sample})) or "no files"
        raise DataError(
            f"--data {path}: its samples have {ends}; needed: an image and its class, as in 1.jpg and 1.cls"
        )
    made = of_images(path, images)
    made.data["name"] = "tar"
    if targets[0] == "json":
        made.odd.append("set data.params.key to the name of the target in the json files")
    else:
        _of_target(
            made, [sample[targets[0]].decode(errors="replace").strip() for sample in samples], len(files["train"])
        )
    if targets[0] != "cls":
        made.data["params"]["target"] = targets[0]
    found = [
        f"{count(len(files['train']), 'tar file')} of train, {'at least ' * (len(samples) == LOOKED_AT)}"
        f"{len(samples):,} samples in the first one"
    ]
    return _with(made, [*found, *([f"splits: {', '.join(files)}"] if len(files) > 1 else [])])


def _first_rows(path: Path) -> Any:
    """Return the first rows of a file as a pyarrow table."""
    from workflow_lib.datasets._arrow_files import MAGIC, pyarrow

    package = pyarrow()
    try:
        if path.suffix != ".arrow":
            with package.parquet.ParquetFile(path) as file:
                batches = list(islice(file.iter_batches(LOOKED_AT), 1))
                return package.Table.from_batches(batches, file.schema_arrow)
        with package.memory_map(str(path)) as file:
            is_file = file.read(len(MAGIC)) == MAGIC
            file.seek(0)
            reader = package.ipc.open_file(file) if is_file else package.ipc.open_stream(file)
            first = (
                [reader.get_batch(0)]
                if is_file and reader.num_record_batches
                else []
                if is_file
                else [*islice(reader, 1)]
            )
            return package.Table.from_batches(first, reader.schema).slice(0, LOOKED_AT)
    except (package.ArrowException, OSError) as error:
        raise DataError(f"--data {path}: cannot be read ({error})") from error


def _is_list(kind: Any) -> bool:
    from workflow_lib.datasets._arrow_files import pyarrow

    types = pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _samples(path: Path) -> Iterator[Mapping[str, bytes]]:
    """Yield the content of the files of each sample, by extension; neighbours with one name are a sample."""
    try:
        with tarfile.open(path, "r:") as tar:
            plain = (member for member in tar if member.isreg() and not Path(member.name).name.startswith("."))
            left = MOST_BYTES
            for _, members in groupby(plain, key=lambda member: _parts(member.name)[0]):
                sample = {}
                for member in members:
                    if member.issparse() or member.size > LARGEST_BYTES:
                        raise DataError(f"--data {path}: `{member.name}` is no plain file of less than 256 MiB")
                    file = tar.extractfile(member)
                    sample[_parts(member.name)[1]] = file.read() if file is not None else b""
                    left -= member.size
                yield sample
                if left < 0:
                    return
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"--data {path}: is not an uncompressed tar file ({error}); decompress it") from error


def _parts(name: str) -> tuple[str, str]:
    """Return the name of a sample and the extension of a file, which begins at the first dot."""
    folder, _, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}/{key}", extension.lower()


def _images_in(
    samples: Sequence[Mapping[str, bytes]], endings: Sequence[str]
) -> Iterator[tuple[str, str, Mapping[str, bytes]]]:
    """Yield a name for messages, the extension of its image, and the files of each sample with an image."""
    for number, sample in enumerate(samples):
        if end := next((end for end in endings if end in sample), None):
            yield f"sample {number}", end, sample


def _of_target(made: Guess, values: Sequence[Any], files: int) -> None:
    """Add the kind of the target to a guess, and what is odd about it, from the first samples of the first file."""
    different = Counter(str(value) for value in values)
    is_number = all(_is_real(value) for value in values)
    if is_number and (len(different) > MOST_CLASSES or any(float(value) % 1 for value in values)):
        made.data["params"]["kind"] = "regression"
    else:
        made.found.append(counts_of(different))
        if files == 1 and len(values) < LOOKED_AT:  # the others may have more of each class
            made.odd += of_classes(different)
    made.fit_batches(len(values) * files)


def _is_real(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _with(made: Guess, found: list[str]) -> Guess:
    made.found = [*found, *made.found]
    return made
