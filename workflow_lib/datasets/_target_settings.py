"""Settings of the columns of a table that are to be predicted, and of how the values in its file are written."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from workflow_lib.datasets._notation import Notation
from workflow_lib.plugins import Section, Task
from workflow_lib.plugins.section import ADDED


class TargetSettings(Section):
    """The columns to predict, and the notation of the file."""

    target: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="column to predict; regression and multilabel: or a list of columns"
    )
    task: Literal["classification", "regression", "multilabel"] = Field(
        "classification",
        description="classification: the target is a class; regression: a number; multilabel: each column is a label",
    )
    categorical: tuple[str, ...] = Field(
        (),
        description="columns whose values are names, even if they look like numbers or if there are many of them",
    )
    split: str | None = Field(
        None, description="column with train, val or test for each row; null: the splits are drawn"
    )
    missing: tuple[str, ...] = Field(
        ("", "NA", "N/A", "NaN", "nan", "null"), description="texts that mean a missing value"
    )
    decimal: Literal[".", ","] = Field(".", description="decimal mark of numbers that are stored as text")
    thousands: Literal[",", ".", " ", "'"] | None = Field(
        None, description="mark between thousands in such numbers; a space stands for spaces of any width"
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="character between the values of a CSV file")
    sheet: str | None = Field(
        None, description="sheet of an .xlsx file; null: the only one with content", json_schema_extra=ADDED
    )

    @field_validator("target", mode="after")
    @classmethod
    def _has_different_names(cls, target: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(target, str):
            return target
        if twice := [name for name, count in Counter(target).items() if count > 1]:
            raise ValueError(f"`{twice[0]}` is listed {target.count(twice[0])} times; list each column once")
        return target[0] if len(target) == 1 else target  # equal data has equal settings

    @field_validator("task", mode="after")
    @classmethod
    def _can_have_these_targets(cls, task: Task, info: ValidationInfo) -> Task:
        if task == "classification" and isinstance(target := info.data.get("target"), tuple):
            raise ValueError(
                f"classification predicts one column, but data.params.target lists {len(target)}; allowed for several: "
                "regression, which predicts numbers, and multilabel, whose columns are labels of 0 and 1"
            )
        return task

    @field_validator("thousands", mode="after")
    @classmethod
    def _is_not_the_decimal_mark(cls, thousands: str | None, info: ValidationInfo) -> str | None:
        if thousands is not None and thousands == info.data.get("decimal"):
            raise ValueError(f"`{thousands}` is already the decimal mark (data.params.decimal)")
        return thousands

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to predict."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def notation(self) -> Notation:
        """The marks of numbers and of missing values."""
        return Notation(frozenset(self.missing), self.decimal, self.thousands)
