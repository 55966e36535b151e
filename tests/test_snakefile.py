from __future__ import annotations

import os
from pathlib import Path

import pytest

from workflow_lib import config, snakefile
from workflow_lib.errors import ConfigError, StateError


@pytest.mark.parametrize("name", ["metadata", "incomplete", "locks", "log"])
def test_the_message_about_an_unusable_snakemake_folder_says_what_to_do(tmp_path: Path, name: str) -> None:
    snakefile.check_records(tmp_path / "none")
    (tmp_path / name).touch()
    with pytest.raises(StateError, match=f"cannot write to {tmp_path}/{name}: Not a directory.*move {tmp_path} away"):
        snakefile.check_records(tmp_path)


def test_records_with_long_names_are_checked(tmp_path: Path) -> None:
    record = tmp_path / "metadata" / "@bG9uZ2Vy" / "cmVzdA"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    snakefile.check_records(tmp_path)
    record.write_bytes(b"\xff")
    with pytest.raises(StateError, match="cmVzdA, a record of Snakemake, cannot be read"):
        snakefile.check_records(tmp_path)
    assert record.exists()


def test_config_accepts_only_set() -> None:
    assert snakefile.settings_of(["set=training.epochs=3 labels={a: b}"]) == ["training.epochs=3 labels={a: b}"]
    with pytest.raises(ConfigError, match="--config epochs: the only name it takes is 'set'"):
        snakefile.settings_of(["epochs=3"])


def test_a_failed_job_is_listed_with_its_last_line_and_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("starting\nthe reason\n\n")
    told = snakefile.failures([("train a", log), ("train b", tmp_path / "none.log")], "snakemake 'a b'")
    assert f"train a failed: the reason\n    log: {log}" in told
    assert "train b failed: its log is empty" in told
    assert told.endswith("Fix the cause, then resume with: snakemake 'a b'")


def test_the_state_of_folders_changes_with_any_file_in_them(tmp_path: Path) -> None:
    data = config.Data(name="image_folder", params={"path": tmp_path / "images"})
    path = tmp_path / "images" / "a" / "deep" / "1.png"
    path.parent.mkdir(parents=True)
    states = [snakefile.files_state(data)]
    path.write_bytes(b"1")
    states.append(snakefile.files_state(data))
    path.write_bytes(b"12")
    states.append(snakefile.files_state(data))
    os.utime(path, ns=(1, 1))
    states.append(snakefile.files_state(data))
    path.rename(path.with_name("2.png"))
    states.append(snakefile.files_state(data))
    assert len(set(states)) == 5
    (path.parent / ".DS_Store").touch()
    assert snakefile.files_state(data) == states[-1]


def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / os.fsdecode(b"f\xfcr.png")).touch()
    data = config.Data(name="image_folder", params={"path": tmp_path / "images"})
    with pytest.raises(ConfigError, match=r"images/a/f\\udcfcr.png': its name is not UTF-8; rename it"):
        snakefile.files_state(data)


def test_only_the_default_limit_of_jobs_a_second_is_dropped() -> None:
    from snakemake.cli import get_argument_parser
    from snakemake.scheduling.job_scheduler import JobRateLimiter

    parser = get_argument_parser()
    default, own = (parser.parse_args(given).max_jobs_per_timespan for given in ([], ["--max-jobs-per-timespan=5/1s"]))
    assert snakefile.rate_limit(JobRateLimiter(default)) is None
    limiter = JobRateLimiter(own)
    assert snakefile.rate_limit(limiter) is limiter
    assert snakefile.rate_limit(None) is None
