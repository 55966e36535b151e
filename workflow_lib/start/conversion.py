"""Advice for files that no data set reads: unpack them, or convert them to a kind that is read."""

from __future__ import annotations

from pathlib import Path

ARRAYS = 'numpy.savez("{stem}.npz", train_images=..., train_labels=...)'
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".z")
# advice by the end of a file's name; {path} is the file, {stem} its path without that end
WAYS = {
    ".zip": "unpack it: `unzip {path} -d {stem}`",
    **dict.fromkeys((".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"), "unpack it: `tar -xf {path}`"),
    **dict.fromkeys(COMPRESSED, "decompress it"),
    ".gz": "decompress it: `gunzip {path}`",
    **dict.fromkeys(
        (".jsonl", ".ndjson"), 'convert it: pandas.read_json("{path}", lines=True).to_csv("{stem}.csv", index=False)'
    ),
    **{
        end: f'convert it: pandas.read_{kind}("{{path}}").to_csv("{{stem}}.csv", index=False)'
        for end, kind in {
            ".json": "json", ".feather": "feather", ".orc": "orc",
            ".dta": "stata", ".sav": "spss", ".sas7bdat": "sas", ".xls": "excel", ".xlsm": "excel", ".xlsb": "excel",
            ".ods": "excel", ".xml": "xml",
        }.items()
    },
    **dict.fromkeys(
        (".pkl", ".pickle"),
        'convert it if you trust its source, since reading it executes code: '
        'pandas.read_pickle("{path}").to_csv("{stem}.csv", index=False)',
    ),
    ".npy": f'convert it: numpy.load("{{path}}") gives the array for {ARRAYS}',
    ".mat": f'convert it: scipy.io.loadmat("{{path}}") gives the arrays for {ARRAYS}',
    **dict.fromkeys((".h5", ".hdf5"), f'convert it: h5py.File("{{path}}") gives the arrays for {ARRAYS}'),
    **dict.fromkeys((".pt", ".pth"), f"convert its tensors to arrays for {ARRAYS}"),
    **dict.fromkeys(
        (".db", ".sqlite", ".sqlite3"),
        'convert it: pandas.read_sql(query, connection).to_csv("{stem}.csv", index=False)',
    ),
    **dict.fromkeys((".csv", ".tsv", ".xlsx"), "give one table; pandas.concat joins several of the same columns"),
    ".bin": "a file of tokens is read by the data set `tokens`",
    **dict.fromkeys((".gif", ".heic", ".svg"), "convert it to PNG, and give the folder of the images"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"), "give the folder of the images"),
}  # fmt: skip


def way(path: Path) -> str:
    """Return what to do with a file, to end a message with; empty for an unknown kind."""
    name = path.name.lower()
    ends = [end for end in WAYS if name.endswith(end)]
    if not ends:
        return ""
    end = max(ends, key=len)
    return "; " + WAYS[end].format(path=path, stem=str(path)[: -len(end)])
