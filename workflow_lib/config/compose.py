"""Merge experiment files, the files that they extend, and overrides into one tree of values with their origins."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_lib.config.by_path import BY_PATH
from workflow_lib.config.length import STEPS_FOR_EPOCHS
from workflow_lib.config.renamed import read_old_names
from workflow_lib.config.run import VARIANTS
from workflow_lib.config.yaml import KeyPath, Origins, parse_yaml, paths
from workflow_lib.errors import ConfigError, shortened
from workflow_lib.files import in_utf8
from workflow_lib.plugins import is_object_path
from workflow_lib.store import layout

MAPPING = "the mapping"  # where a mistake is, in messages


@dataclass(frozen=True)
class Source:
    """A tree of values, their origins, and messages for the user about old names in it."""

    values: dict[str, Any]
    origins: Origins
    messages: tuple[str, ...] = ()


def project_root() -> Path | None:
    """Return the current folder if it is that of a project, which has a `Snakefile`, else None.

    Files are opened relative to the current folder, so a path is made relative only to it, not to a project above whose
    pipeline may run here (`snakemake --directory`).
    """
    folder = Path.cwd()
    return folder if (folder / "Snakefile").is_file() else None


def project_above() -> Path | None:
    """Return the nearest project above the current folder, or None if there is none, or a pipeline has run here."""
    folder = Path.cwd()
    if any((folder / name).exists() for name in ("Snakefile", "workflow", layout.WORK, "results")):
        return None
    return next((parent for parent in folder.parents if (parent / "Snakefile").is_file()), None)


def read(path: Path, opened: tuple[Path, ...] = ()) -> Source:
    """Return the values of a file, merged over those of the file that it `extends`."""
    where = shown(path)
    if path.resolve() in opened:
        chain = " -> ".join(shown(p) for p in (*opened, path.resolve()))
        raise ConfigError(f"{where}: extends: the files extend each other: {chain}")
    value, entries = _parse(path, where)
    if value is None:
        raise ConfigError(f"{where}: empty; an experiment needs at least a `name:` (`everstep init` prints one)")
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ConfigError(f"{where}: an experiment is a mapping of settings (name: value), not {kind}")
    return _extended(value, entries, path.parent, (*opened, path.resolve()))


def read_mapping(values: Mapping[str, Any]) -> Source:
    """Return the settings of a mapping, merged over those of the file that it `extends`, relative to this folder."""
    return _extended(dict(values), {(): MAPPING}, Path(), ())


def _extended(value: dict[str, Any], entries: dict[KeyPath, str], folder: Path, opened: tuple[Path, ...]) -> Source:
    """Return the values merged over those of the file that they extend, whose path is relative to the folder."""
    base = value.pop("extends", None)
    if base is None:
        return _with_current_names(value, entries)
    place = Origins(entries).place(("extends",))
    if not isinstance(base, str):
        raise ConfigError(f"{place}: give the path of one file, relative to this one")
    target = folder / base
    if not os.path.isfile(target):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        raise ConfigError(f"{place}: no file {shortened(shown(target), 300)}")
    return merge(read(target, opened), _with_current_names(value, entries))


def _with_current_names(values: dict[str, Any], entries: dict[KeyPath, str]) -> Source:
    return Source(*read_old_names(values, Origins(entries)))


def shown(path: Path) -> str:
    """Return the path, relative to the current folder if it is inside of it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def _parse(path: Path, where: str) -> tuple[Any, dict[KeyPath, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: not UTF-8 text (byte {error.start}); an experiment is a YAML file; {in_utf8(path)}"
        ) from error
    if path.suffix != ".json":
        return parse_yaml(text, where)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_finite), {(): where}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return values


def _finite(text: str) -> float:
    raise ValueError(f"{text} is not allowed; numbers are finite")


def merge(base: Source, over: Source) -> Source:
    """Return `base` with `over` on top: mappings are merged, any other value replaces."""
    values = overlay(base.values, over.values)
    entries: dict[KeyPath, str] = {}
    for path in paths(values):
        origin = over.origins.exactly(path) or base.origins.exactly(path)
        if origin:
            entries[path] = origin
    empty = [
        f"{over.origins.place(path)}: {{}} changes nothing, since mappings are merged; null clears it"
        for path in _without_effect(_with_common(base.values, over.values), over.values)
    ]
    messages = tuple(dict.fromkeys((*base.messages, *over.messages, *empty)))
    return Source(values, Origins(entries), messages)


def _without_effect(base: Any, over: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of each empty mapping that is merged over one with content."""
    if isinstance(base, dict) and isinstance(over, dict):
        if base and not over:
            yield path
        for key in over:
            yield from _without_effect(base.get(key), over[key], (*path, key))


def overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with others on top; a section with a new `name` keeps the settings that both names have."""
    merged: dict[str, Any] = deep_merge(_with_common(base, over), over)
    return merged


def overlay_point(settings: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a run with a point on top.

    A number of epochs among all settings may be a default. So a point that gives the number in steps, where the run
    had none, replaces it.
    """
    replaced = {}
    for section, (steps, epochs) in STEPS_FOR_EPOCHS.items():
        before, given = settings.get(section), point.get(section)
        if isinstance(before, dict) and isinstance(given, dict) and given.get(steps) is not None:
            is_new = before.get(steps) is None and epochs in before
            replaced[section] = {**before, epochs: None} if is_new else before
    return overlay({**settings, **replaced}, point)


def _with_common(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return the base, with those settings of its sections that the names on top have too."""
    common = {section: _common(section, base.get(section), over[section]) for section in VARIANTS if section in over}
    return {**base, **common}


def _common(section: str, base: Any, over: Any) -> Any:
    """Return the settings of the base section that its new `name` has too."""
    default, fields = VARIANTS[section]
    if not isinstance(base, dict) or not isinstance(over, dict):
        return base
    old, new = base.get("name", default), over.get("name", base.get("name", default))
    if old == new:
        return base
    # An unknown name keeps all settings; validation then reports the name.
    known = BY_PATH if BY_PATH in fields and is_object_path(str(new)) else str(new)
    common = fields.get(known) or fields.get("*") or frozenset(base)
    return {key: value for key, value in base.items() if key in common}


def deep_merge(base: Any, over: Any) -> Any:
    """Return the mappings merged key by key, the second on top."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {
        **base,
        **{key: deep_merge(base[key], value) if key in base else value for key, value in over.items()},
    }


# Mappings whose keys are dotted names: in an override, the rest of the path is one key.
_DOTTED_KEYS = (("sweep", "grid"), ("sweep", "zip"), ("tune", "set"), ("labels",))
_SPACE_FIELDS = {"type", "low", "high", "log", "step", "choices"}


def overrides(texts: Sequence[str]) -> list[Source]:
    """Return one tree for each `a.b=value` in the texts; values are YAML."""
    return [_override(word) for text in texts for word in _words(text)]


def _words(text: str) -> list[str]:
    """Return the assignments in a text. Values in quotes or brackets may have spaces."""
    if not re.search(r"\s", text.strip()):
        return [text.strip()] if text.strip() else []
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set: {shortened(repr(text))}: {error}; close the quotes") from error
    words: list[str] = []
    for part in parts:
        # A part that is not an assignment continues a value that began with a bracket.
        if words and not re.match(r"[A-Za-z_][\w.-]*=", part) and words[-1].partition("=")[2][:1] in ("[", "{"):
            words[-1] += f" {part}"
        else:
            words.append(part)
    return words


def _override(word: str) -> Source:
    name, equals, text = word.partition("=")
    if not equals or not name or not all(name.split(".")):
        raise ConfigError(f"set: {shortened(repr(word))} is not of the form section.setting=value")
    where = shortened(f"set {name}={text}")
    value, inner = parse_yaml(text, where, numbered=False)
    path = _override_path(name.split("."))
    for key in reversed(path):
        value = {key: value}
    entries: dict[KeyPath, str] = {(*path, *rest): where for rest in inner or {(): where}}
    entries.update({path[:length]: where for length in range(1, len(path))})
    return _with_current_names(value, entries)


def _override_path(parts: list[str]) -> tuple[str, ...]:
    for prefix in _DOTTED_KEYS:
        if tuple(parts[: len(prefix)]) == prefix and len(parts) > len(prefix):
            return (*prefix, ".".join(parts[len(prefix) :]))
    if parts[:2] == ["tune", "space"] and len(parts) > 3 and parts[-1] in _SPACE_FIELDS:
        return ("tune", "space", ".".join(parts[2:-1]), parts[-1])
    if parts[:2] == ["tune", "space"] and len(parts) > 2:
        return ("tune", "space", ".".join(parts[2:]))
    return tuple(parts)
