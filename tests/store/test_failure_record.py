from __future__ import annotations

from pathlib import Path

import pytest

import workflow_lib
from workflow_lib import files
from workflow_lib.config import Experiment
from workflow_lib.store import failure_record
from workflow_lib.training import trainer


@pytest.mark.parametrize("edited", [trainer.__file__, workflow_lib.__file__, failure_record.__file__])
def test_a_failure_depends_on_every_source_file_of_the_package(edited: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate({"name": "a", "runtime": {"device": "cpu"}})
    before = failure_record.conditions(experiment, "train")
    assert failure_record.conditions(experiment, "train") == before
    file_digest = files.file_digest

    def digest_after_edit(path: Path) -> str:
        return "edited" if path == Path(edited) else file_digest(path)

    monkeypatch.setattr(files, "file_digest", digest_after_edit)
    after = failure_record.conditions(experiment, "train")
    assert [name for name in before if before[name] != after[name]] == ["everstep"]
