"""A changed source of a stage is recorded, or its stage has a new number."""

from __future__ import annotations

import copy

from tests.support import stages
from workflow_lib.plugins import source_digest


def test_every_changed_source_of_a_stage_was_weighed() -> None:
    changed = stages.unweighed(stages.current(), stages.recorded())
    assert not changed, (
        "changed since they were recorded. Where results come out differently, raise the number of the stage in STAGES "
        f"(workflow_lib/config/stages.py); then run scripts/stages: {'; '.join(changed)}"
    )


def test_every_file_of_the_package_belongs_to_a_stage_or_decides_no_result() -> None:
    known = {path for patterns in (*stages.SOURCES.values(), stages.NEUTRAL) for path in stages.sources(patterns)}
    files = {path for path in stages.PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(stages.PACKAGE)) for path in files - known} == set()


def test_a_changed_source_is_noticed_until_its_stage_has_another_number_that_is_recorded() -> None:
    before = stages.current()
    now = copy.deepcopy(before)
    assert stages.unweighed(now, before) == []
    changed = now["export"]["sources"]
    assert isinstance(changed, dict)
    changed["export/graph.py"] = "other"
    assert stages.unweighed(now, before) == ["export: export/graph.py"]
    now["export"]["number"] = 99
    assert stages.unweighed(now, before) == [f"export: its number is 99, recorded is {before['export']['number']}"]
    assert stages.unweighed(now, now) == []
    del now["export"]
    assert stages.unweighed(before, now) != []


def test_comments_and_formatting_need_no_number() -> None:
    one, two = b'"""Doc."""\nx = (1 +\n     2)  # why\n', b"x = 1 + 2\n"
    assert source_digest.of_text(one) == source_digest.of_text(two) != source_digest.of_text(b"x = 1 + 3\n")
