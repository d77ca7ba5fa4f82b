"""Outcome of one request, as the results file holds it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Reading(BaseModel):
    """Facts that an answer tells about its request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: int = Field(0, description="Images, videos or sounds in the answer.")
    stages: dict[str, float] = Field({}, description="Seconds by stage, as the server measured them.")
    steps: int | None = Field(None, description="Denoising steps; null: the server does not say.")
    cached_steps: int | None = Field(None, description="Steps that reused blocks.")
    prompt_hits: int | None = Field(None, description="Prompts whose embeddings the server still had.")


class Outcome(Reading):
    """One request. Times are seconds since the point began, by the client's monotonic clock."""

    kind: str = Field(description="Name of its entry in the mix.")
    intended: float = Field(description="Time at which it was due. Latency counts from here.")
    sent: float = Field(description="Time at which it was sent: later where the client or its bound held it back.")
    ended: float = Field(description="Time at which its answer was complete, or it failed.")
    error: str | None = Field(
        None, description="Class of its error: status and code, or `timeout`; null: it succeeded."
    )
    message: str | None = Field(None, description="The server's text of the error, cut.")
    retry_after_s: float | None = Field(None, description="`Retry-After` of the error, seconds.")

    @property
    def latency(self) -> float:
        """Seconds from the intended start to the complete answer."""
        return self.ended - self.intended


class Failed(Exception):
    """Request without a usable answer.

    Attributes:
        kind: class of the error.
        message: text of the server, or empty.
        retry_after_s: `Retry-After`, seconds.
    """

    def __init__(self, kind: str, message: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(kind)
        self.kind, self.message, self.retry_after_s = kind, message, retry_after_s
