"""Answers about the server's log."""

from __future__ import annotations

from pydantic import BaseModel, Field


class LoggedWarning(BaseModel):
    """A warning or error of this server's log, however often it came."""

    level: str = Field(description="WARNING, ERROR or CRITICAL.")
    subject: str = Field(description="Part of the server that logged it, such as jobs.watchdog.")
    message: str = Field(
        description="Its text, with … in place of each value: values may hold paths and texts of callers. The log has "
        "them."
    )
    count: int = Field(description="Number of times that it came since first_at.")
    first_at: str = Field(description="ISO 8601, UTC, ms.")
    last_at: str = Field(description="ISO 8601, UTC, ms.")


class LoggedWarnings(BaseModel):
    """The warnings of the last hour, latest first."""

    warnings: list[LoggedWarning]
