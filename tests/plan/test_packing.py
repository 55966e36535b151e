"""The runs and the study that one job trains."""

from __future__ import annotations

import pytest

from tests.plan.conftest import TUNE, experiment
from workflow_lib import plan


def sizes(seeds: int, pack: int | str, *, has_study: bool, shares: bool = True) -> list[tuple[int, bool]]:
    """Return of each pack the number of its runs, and True if it has the study."""
    swept = {"grid": {"seed": [*range(seeds)]}}
    whole = experiment(tune=TUNE, sweep=swept, runtime={"pack": pack})
    found = plan.packs(whole, plan.expand(whole), has_study=has_study, shares=shares)
    assert list(found) == [each.id for each in found.values()]
    return [(len(each.runs), each.study is not None) for each in found.values()]


@pytest.mark.parametrize(
    ("seeds", "pack", "has_study", "expected"),
    [
        (3, "auto", False, [(3, False)]),
        (1, "auto", False, []),  # a single run has its own job
        (130, "auto", False, [(43, False), (43, False), (44, False)]),
        (3, "auto", True, [(3, True)]),
        (1, "auto", True, [(1, True)]),
        (4, 2, True, [(2, False), (2, False), (0, True)]),
    ],
)
def test_runs_are_packed_equally_and_share_a_pack_with_the_study(
    seeds: int, pack: int | str, has_study: bool, expected: list[tuple[int, bool]]
) -> None:
    assert sizes(seeds, pack, has_study=has_study) == expected


def test_where_packs_run_side_by_side_the_study_has_its_own() -> None:
    assert sizes(3, "auto", has_study=True, shares=False) == [(3, False), (0, True)]
    assert sizes(1, "auto", has_study=True, shares=False) == [(0, True)]
