"""What every fact of a report is: typed, frozen data that is read as strictly as it was written."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """Read as it was written: strict, whole, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
