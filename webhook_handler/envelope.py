"""What is read of an event's body before it is stored as it came.

Two style: snapshot events carry the object they are about, thin ones (`v2.core.event`, such
as the meters' error reports) only say where it can be fetched.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    StringConstraints,
    ValidationError,
    field_validator,
)

from webhook_handler.signature import LATEST, Refused

Name = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")]
"""An id or a type: printable ASCII without blanks, as all of Stripe's are."""

Flavour = Literal["snapshot", "thin"]


class Envelope(BaseModel):
    """The parts of an event that decide how it is stored. Everything else is kept unread."""

    object: Literal["event", "v2.core.event"]
    id: Name
    type: Name
    created: AwareDatetime
    livemode: bool
    api_version: Name | None = None
    account: Name | None = None

    @field_validator("created", mode="before")
    @classmethod
    def _in_seconds(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not 0 <= value <= LATEST:
            raise ValueError("is not in unix seconds")
        return value

    @property
    def style(self) -> Flavour:
        """Whether the body carries its object or only refers to it."""
        return "snapshot" if self.object == "event" else "thin"

    @property
    def created_utc(self) -> datetime:
        """When Stripe made the event; to the second in snapshot events."""
        return self.created.astimezone(UTC)


def read(body: str) -> Envelope:
    """The envelope in a body. Raises Refused with the reason `unreadable`."""
    try:
        return Envelope.model_validate_json(body)
    except ValidationError as error:
        # Where, never what: the body stays out of answers and logs.
        where = sorted({".".join(map(str, problem["loc"])) or "body" for problem in error.errors()})
        raise Refused(
            "unreadable", f"It is not a Stripe event: {', '.join(where)[:200]}."
        ) from None
    except OverflowError:
        raise Refused("unreadable", "It is not a Stripe event: created.") from None
