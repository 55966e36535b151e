"""The estimate of the time that is left. No test waits: times are recorded or given."""

from __future__ import annotations

from itertools import pairwise

import pytest

from workflow_lib.training.pace import Pace

STEPS = 7200
# seconds and steps at the end of each epoch of a training on a CPU with eight times as many processes as cores
RECORDED = [
    *[(0.0, 18), (0.8, 36), (1.5, 54), (2.3, 72), (3.2, 90), (3.9, 108), (4.9, 126), (5.8, 144), (6.7, 162)],
    *[(7.4, 180), (8.2, 198), (8.7, 216), (9.5, 234), (10.3, 252), (11.3, 270), (12.2, 288), (13.1, 306)],
    *[(14.1, 324), (15.1, 342), (15.9, 360), (16.6, 378), (18.0, 396), (18.9, 414), (19.8, 432), (20.8, 450)],
    *[(21.9, 468), (23.0, 486), (24.1, 504), (25.1, 522), (26.0, 540), (27.2, 558), (28.2, 576), (29.2, 594)],
    *[(30.3, 612), (31.4, 630), (32.6, 648), (33.6, 666), (34.8, 684), (35.9, 702), (36.8, 720), (37.7, 738)],
    *[(38.5, 756), (39.3, 774), (40.2, 792), (41.3, 810), (42.3, 828), (43.3, 846), (44.7, 864), (45.7, 882)],
]


def estimates(times: list[tuple[float, int]], steps: int = STEPS) -> list[float]:
    """Return the seconds that are left at each of the times but the first."""
    pace, found = Pace(times[0][1], times[0][0]), []
    for now, step in times[1:]:
        pace.add(step, now)
        left_s = pace.left_s(steps, now)
        assert left_s is not None
        found.append(left_s)
    return found


def most_change(values: list[float]) -> float:
    return max(abs(after / before - 1) for before, after in pairwise(values))


def test_the_estimate_is_steady_under_load() -> None:
    between = [
        (STEPS - step) * (now - before) / (step - earlier) for (before, earlier), (now, step) in pairwise(RECORDED)
    ]
    assert most_change(between[10:]) > 0.4  # from the time of one epoch alone
    assert most_change(estimates(RECORDED)[10:]) < 0.05


def test_a_lasting_change_of_the_speed_is_followed() -> None:
    fast = [(float(second), 10 * second) for second in range(200)]
    slow = [(200.0 + second, 2000 + 2 * second) for second in range(400)]
    found = estimates([*fast, *slow], 10_000)
    assert found[198] == pytest.approx((10_000 - 1990) / 10, rel=1e-6)
    assert found[-1] == pytest.approx((10_000 - slow[-1][1]) / 2, rel=0.15)


def test_validations_count() -> None:
    """An epoch of 100 steps takes 10 s, and its validation 5 s."""
    times = [(15.0 * epoch + done, 100 * epoch + 10 * done) for epoch in range(20) for done in range(11)]
    assert estimates(times, 4000)[-1] == pytest.approx(20 * 15 + 5, rel=0.05)


def test_an_interruption_of_hours_changes_the_estimate_by_half_and_is_soon_forgotten() -> None:
    times = [(float(second), second) for second in range(7200)]
    later = [(50e3 + second, 7200 + second) for second in range(3600)]
    before, after, *_, last = estimates([*times, *later], 12_000)[7198:]
    assert after / before < 1.5
    assert last == pytest.approx(12_000 - later[-1][1], rel=0.2)


def test_time_passes_between_two_steps() -> None:
    pace = Pace(0, 0.0)
    assert pace.left_s(100, 5.0) is None
    pace.add(10, 10.0)
    pace.add(10, 20.0)
    assert [pace.left_s(100, now) for now in (10.0, 50.0, 1000.0)] == [90.0, 50.0, 0.0]
