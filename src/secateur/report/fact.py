"""What every fact of a report is: typed, frozen data that is read as strictly as it was written."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Count: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 63)]
"""How many there are of something; no model has more, and not every float could say it."""


class Fact(BaseModel):
    """Read as it was written: strict, whole, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
