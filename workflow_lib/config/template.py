"""The commented template and the JSON schema of experiment files, both generated from the sections."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from workflow_lib import plugins
from workflow_lib.config.annotations import sections_of, variants
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.messages import allowed
from workflow_lib.config.run import Data, Model
from workflow_lib.config.yaml import parse_yaml
from workflow_lib.plugins import Section

SAMPLE_NAME = "my-experiment"
HEAD = """\
# yaml-language-server: $schema=schema.json
# Every setting of an experiment, at its default. Keep those you change, delete the rest; only `name` is required.
# `extends: other.yaml` starts from another file. `everstep validate` checks this file, `everstep plan` lists its runs.
"""


def template() -> str:
    """Return an experiment file with every setting at its default, each with its description, unit and bounds."""
    lines = [HEAD]
    for name, field in Experiment.model_fields.items():
        lines += _setting(name, field, SAMPLE_NAME if name == "name" else _default(field))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _setting(name: str, field: FieldInfo, value: Any) -> Iterator[str]:
    if isinstance(value, Section):
        yield from _remark((type(value).__doc__ or "").strip())
        yield f"{name}:{'' if type(value).model_fields else ' {}'}"
        yield from _indented(_section(value, variants(field.annotation)))
        return
    yield from _meaning(field)
    examples = field.examples or []
    inner = sections_of(field.annotation)
    if inner and value is None:
        yield from _commented([f"{name}:", *_indented(_bare(inner[0]))])
        return
    if examples and value in ({}, []):
        yield from _commented([f"{name}:", *_indented(_yaml(examples[0]))])
        return
    yield f"{name}: {inline(value)}"


def _section(section: Section, others: dict[str, type[Section]]) -> Iterator[str]:
    """Yield the settings of a section, and as comments those of its other variants."""
    fields = type(section).model_fields
    if isinstance(section, Data | Model):
        yield from _plugin_section(section)
        fields = {name: field for name, field in fields.items() if name not in ("name", "params")}
    if others:
        yield from _remark(f"{fields['name'].description}: one of {', '.join(others)}")
        yield f"name: {getattr(section, 'name', '')}"
        fields = {name: field for name, field in fields.items() if name != "name"}
    for name in fields:
        yield from _setting(name, fields[name], getattr(section, name))
    for tag, other in others.items():
        own = {n: f for n, f in other.model_fields.items() if n not in type(section).model_fields}
        if not isinstance(section, other) and own:
            yield f"# settings of `name: {tag}` only:"
            for name, field in own.items():
                yield from _commented(_setting(name, field, _default(field)))


def _plugin_section(section: Data | Model) -> Iterator[str]:
    kind, fields = ("data" if isinstance(section, Data) else "models"), type(section).model_fields
    names = plugins.available(kind)
    yield from _remark(f"{fields['name'].description}; in the package: {', '.join(names)}")
    yield f"name: {section.name}"
    own = plugins.load(kind, section.name).Params
    yield from _remark(f"{fields['params'].description}")
    yield f"params:{'' if own.model_fields else ' {}'}"
    for name, field in own.model_fields.items():
        yield from _indented(_setting(name, field, section.params[name]))
    for name in names:
        other = plugins.load(kind, name).Params
        if name != section.name and other.model_fields:
            yield f"# settings of `name: {name}`:"
            yield from _commented(["params:", *_indented(_bare(other))])


def _bare(section: type[Section]) -> Iterator[str]:
    """Yield the settings of a section that is null by default."""
    for name, field in section.model_fields.items():
        example = field.examples[0] if field.examples else None
        value = _default(field)
        yield from _meaning(field)
        inner = sections_of(field.annotation)
        if inner and value is None:
            yield f"{name}: null"
            yield from _commented([f"{name}:", *_indented(_bare(inner[0]))])
        elif value is PydanticUndefined:
            text = list(_yaml(example)) if isinstance(example, dict) else []
            yield f"{name}:" if text else f"{name}: {inline(example) if example is not None else '...'}"
            yield from _indented(text)
        elif isinstance(value, Section):
            yield f"{name}:"
            yield from _indented(_bare(type(value)))
        else:
            yield f"{name}: {inline(value)}"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _meaning(field: FieldInfo) -> Iterator[str]:
    """Yield the description of a setting and its allowed values."""
    plain = (
        sections_of(field.annotation) or get_origin(field.annotation) is Literal and not get_args(field.annotation)[1:]
    )
    yield from _remark(str(field.description) if plain else f"{field.description} [{allowed(field)}]")


def _remark(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, 96, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _indented(lines: Any) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _commented(lines: Any) -> Iterator[str]:
    return (f"# {line}" for line in lines)


def _yaml(value: dict[str, Any] | list[Any]) -> Iterator[str]:
    """Yield a mapping or list as YAML, one item a line."""
    for item in value.items() if isinstance(value, dict) else value:
        yield f"{inline(item[0])}: {inline(item[1])}" if isinstance(value, dict) else f"- {inline(item)}"


def inline(value: Any) -> str:
    """Return the value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse_yaml(value, "")[0] == value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def schema() -> dict[str, Any]:
    """Return the JSON schema of an experiment file, for editors, with the `params` of every plugin in the package."""
    made = Experiment.model_json_schema()
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["properties"]["extends"] = {"type": "string", "description": "file to start from, relative to this one"}
    for field in Experiment.model_fields.values():
        for tag, section in variants(field.annotation).items():
            if tag != getattr(_default(field), "name", None):
                made["$defs"][section.__name__]["required"] = ["name"]
    for kind, plugged in (("data", Data), ("models", Model)):
        made["$defs"][plugged.__name__]["allOf"] = [_choice(made, kind, name) for name in plugins.available(kind)]
    for part in (made, *made["$defs"].values()):
        part["properties"] = {name: _or_null(setting) for name, setting in part.get("properties", {}).items()}
    return made


def _or_null(setting: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the setting; a section, mapping or list may also be left empty, which YAML reads as null."""
    takes_settings = setting.keys() & {"$ref", "oneOf"} or setting.get("type") in ("object", "array")
    return {"anyOf": [setting, {"type": "null"}]} if takes_settings else setting


def _choice(made: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Return the rule `if` this plugin is named `then` these params; for the default plugin also if none is named."""
    params = plugins.load(kind, name).Params.model_json_schema()
    made["$defs"].update(params.pop("$defs", {}))
    made["$defs"][f"{kind}.{name}"] = params
    default = (Data if kind == "data" else Model).model_fields["name"].default
    named: dict[str, Any] = {"properties": {"name": {"const": name}}}
    condition = named if name == default else {**named, "required": ["name"]}
    return {"if": condition, "then": {"properties": {"params": _or_null({"$ref": f"#/$defs/{kind}.{name}"})}}}
