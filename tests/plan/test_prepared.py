"""Facts about prepared data, read while a pipeline may prepare it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflow_lib import config
from workflow_lib.plan import naming, prepared
from workflow_lib.plugins import DatasetFacts
from workflow_lib.results import layout


def test_a_manifest_that_is_removed_meanwhile_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config.Data()
    removed = tmp_path / f"{naming.data_id(data)}.json"
    monkeypatch.setattr(layout, "all_manifests", lambda results: [removed])  # listed just before
    assert prepared.manifest_path(data, tmp_path) is None
    assert prepared.completed(DatasetFacts(classes=3), removed) == DatasetFacts(classes=3)
