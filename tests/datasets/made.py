"""Small data sets for the tests of this folder and of tests/data, as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_wine

from workflow_lib import plugins
from workflow_lib.data import Manifest, Source, prepare
from workflow_lib.data.shard import read_shard


@contextmanager
def opened(name: str, path: Path, **params: Any) -> Iterator[Source]:
    plugin = plugins.load("data", name)
    with closing(plugin.open_source(plugin.Params(path=path, **params), path.parent)) as source:
        yield source


def table(folder: Path, columns: dict[str, list[Any]], name: str = "x.csv", **params: Any) -> Source:
    """Return the source of a table with these columns; `x`, numbers, and `y`, two classes, are added if missing."""
    rows = max(map(len, columns.values()))
    labels = [("no", "yes")[row % 2] for row in range(rows)]
    given = columns if "x" in columns else columns | {"x": [row * 37 % 101 / 4 for row in range(rows)]}
    given = given if "y" in given else given | {"y": labels}
    if name.endswith(".parquet"):
        pd.DataFrame(given).to_parquet(folder / name)
    else:
        quoted = [[f'"{value}"' for value in of_column] for of_column in given.values()]
        lines = [",".join(given), *(",".join(line) for line in zip(*quoted, strict=True))]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    with opened("table", folder / name, **({"target": "y"} | params)) as source:
        return source


def prepared(folder: Path, name: str, path: str, **settings: Any) -> Manifest:
    params = {"path": path} | settings.pop("params", {})
    return prepare({"name": name, "params": params} | settings, folder, folder / "work")


def inputs_of(manifest: Manifest, folder: Path, split: str = "train") -> np.ndarray:
    store = folder / "work" / "data" / manifest.store
    found = [store / shard.name for shard in manifest.shards if shard.split == split]
    return np.concatenate([stored.inputs for path in found if (stored := read_shard(path))])


IDS = [2**60 + row % 4 for row in range(40)]


def diabetes() -> pd.DataFrame:
    """Return 442 patients: numbers, a category, missing values of both kinds, and a number as the target."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame["sex"] = frame["sex"].map({1.0: "woman", 2.0: "man"})
    frame.loc[3:9, "bmi"] = np.nan
    frame.loc[11:12, "sex"] = None
    return frame


def wines() -> pd.DataFrame:
    """Return 178 wines of three growers, whose names are the target."""
    wine = load_wine(as_frame=True)
    return wine.data.iloc[:, :5].assign(grower=[wine.target_names[target] for target in wine.target])


def in_splits(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(part=np.array(["train", "train", "train", "val", "test"])[np.arange(len(frame)) % 5])


def everything(source: Source, split: str = "train") -> np.ndarray:
    return source.read(split, np.arange(len(source.targets[split])))


def written(folder: Path, *lines: str, name: str = "x.csv") -> Path:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / name
