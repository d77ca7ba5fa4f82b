"""Settings of the operator's own check of prompts and outputs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cache_dit_serving.section import Section

FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
ADDRESS = r"https?://[^/\s@]+(/\S*)?"

Subject = Literal["prompt", "output"]


class SafetySettings(Section):
    """The operator's own check of prompts and outputs. Off without `check`."""

    check: str | None = Field(
        None,
        pattern=rf"^({FUNCTION}|{ADDRESS})$",
        description="A Python function, `package.module:function`, or an http or https address. Left out: no check.",
    )
    subjects: tuple[Subject, ...] = Field(
        ("prompt", "output"),
        min_length=1,
        description="prompt: the texts of a request, before it queues. output: each output, before it is delivered; "
        "no previews are made then.",
    )
    timeout_s: float = Field(10, gt=0, le=600, description="Seconds within which one check must answer.")
    on_error: Literal["refuse", "allow"] = Field(
        "refuse",
        description="A check that fails, or does not answer in time. refuse: 503 `safety_check_failed`; allow: go on. "
        "Both are logged and counted.",
    )
    send_files: bool = Field(
        False, description="Send the file of each output to the address too, as base64. A function always gets it."
    )
    key: str | None = Field(
        None,
        min_length=1,
        repr=False,
        description="Key for the address, sent as `Authorization: Bearer ...`; give it by the variable "
        "CACHE_DIT_SERVING__SAFETY__KEY.",
    )

    @property
    def by_http(self) -> bool:
        """True if the check is an address."""
        return self.check is not None and "://" in self.check

    @property
    def sees_prompts(self) -> bool:
        """True if prompts are checked."""
        return self.check is not None and "prompt" in self.subjects

    @property
    def sees_outputs(self) -> bool:
        """True if outputs are checked."""
        return self.check is not None and "output" in self.subjects

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.check is None and (given := sorted(self.model_fields_set - {"check"})):
            raise ValueError(f"{given[0]} has no effect without check")
        for name in ("send_files", "key"):
            if getattr(self, name) and not self.by_http:
                raise ValueError(f"{name} is for an address; leave it out with a function")
        if self.send_files and not self.sees_outputs:
            raise ValueError("send_files has no effect without the subject output")
        return self
