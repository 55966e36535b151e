"""Results that a pack computed are used only while they verify."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflow_lib.results import computed


@pytest.mark.parametrize("damaged", ["evaluation.json", "predictions.csv", computed.CHECKSUMS])
def test_a_result_of_which_a_file_is_damaged_is_not_used(tmp_path: Path, damaged: str) -> None:
    results, folder = tmp_path / "results", tmp_path / "computed"
    results.mkdir()
    for name, content in (("evaluation.json", "{}"), ("predictions.csv", "sample,label\n1,2\n")):
        (results / name).write_text(content)
    assert not computed.is_kept("evaluate", folder)
    computed.keep("evaluate", results, folder)
    assert computed.is_kept("evaluate", folder)
    (folder / damaged).write_bytes(b"{}\n" + (folder / damaged).read_bytes())
    assert not computed.is_kept("evaluate", folder)
