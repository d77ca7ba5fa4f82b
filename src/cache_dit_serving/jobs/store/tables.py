"""The tables of jobs, as the latest migration leaves them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Double, ForeignKey, Index, Integer, LargeBinary, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cache_dit_serving.schemas.jobs import JobState

LIVE = (JobState.QUEUED, JobState.RUNNING)
Number = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself for this one type."""


class Base(DeclarativeBase):
    pass


class JobRow(Base):
    """A job."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_ended_number", "ended", "number"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    """The order of admission."""
    id: Mapped[str] = mapped_column(Text, unique=True)
    key: Mapped[str | None] = mapped_column(Text, unique=True)
    digest: Mapped[str] = mapped_column(Text)
    request: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, index=True)
    """Last state of `history`."""
    history: Mapped[str] = mapped_column(Text)
    ended: Mapped[float | None] = mapped_column(Double)
    """Time of its end, seconds since the epoch."""
    step: Mapped[int]
    steps: Mapped[int]
    cached_steps: Mapped[int]
    result: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    files: Mapped[str] = mapped_column(Text)
    caller: Mapped[str] = mapped_column(Text, server_default="", index=True)
    priority: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[int]
    position: Mapped[int | None]
    starts_in_s: Mapped[float | None] = mapped_column(Double)
    seconds_left: Mapped[float | None] = mapped_column(Double)
    unwanted: Mapped[bool]
    """True if its owner is to cancel it."""
    owner: Mapped[str | None] = mapped_column(Text)
    """The server that has it in its queue, or runs it."""
    owned_until: Mapped[float] = mapped_column(Double)
    """Time at which an owner that is in no table of servers, one of an older version, counts as dead: seconds since the
    epoch."""


class ServerRow(Base):
    """A server that lives, or has died."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    beats: Mapped[int] = mapped_column(BigInteger)
    """Signs of life so far."""


class WebhookRow(Base):
    """A message about a job that is not delivered yet; it outlives its job."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    job: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int]
    due: Mapped[float] = mapped_column(Double, index=True)
    """Time of the next attempt, seconds since the epoch."""
    host: Mapped[str] = mapped_column(Text, server_default="")
    caller: Mapped[str] = mapped_column(Text, server_default="")


class RateRow(Base):
    """The rate of a caller whose requests are limited."""

    __tablename__ = "caller_rates"

    caller: Mapped[str] = mapped_column(Text, primary_key=True)
    due: Mapped[float] = mapped_column(Double)
    """Time at which all that it has sent would be due at an even pace, seconds since the epoch."""


class LivePlaceRow(Base):
    """A generation that waits or runs, of a caller whose generations are limited."""

    __tablename__ = "live_places"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    caller: Mapped[str] = mapped_column(Text, index=True)
    server: Mapped[str] = mapped_column(Text, index=True)
    """The server that has it in its queue, or runs it."""


class UploadRow(Base):
    """A file that came with a job's request."""

    __tablename__ = "job_uploads"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    is_text: Mapped[bool]
    content: Mapped[bytes] = mapped_column(LargeBinary)


class EvidenceRow(Base):
    """A piece of evidence of live traffic."""

    __tablename__ = "evidence"

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    """Place among all; every server reads them in this order."""
    kind: Mapped[str] = mapped_column(Text)
    environment: Mapped[str] = mapped_column(Text)
    server: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
