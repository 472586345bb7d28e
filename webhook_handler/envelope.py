"""The fields of an event that decide how it is stored. The body is stored as Stripe sent it.

Stripe has two payload styles. A snapshot event contains the object that it is about. A thin event
(`v2.core.event`, such as the error reports of meters) only refers to it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, StringConstraints, ValidationError, field_validator

from webhook_handler.signature import LATEST, Refused

Name = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")]
"""An id or a type: printable ASCII without blanks, as all of Stripe's are."""

Style = Literal["snapshot", "thin"]


class Envelope(BaseModel):
    """The fields that are read. Everything else is stored unread."""

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
            raise ValueError("not in unix seconds")
        return value

    @property
    def style(self) -> Style:
        """Whether the body contains its object or only refers to it."""
        return "snapshot" if self.object == "event" else "thin"

    @property
    def created_utc(self) -> datetime:
        """When Stripe created the event, in UTC; to the second for snapshot events."""
        return self.created.astimezone(UTC)


def read(body: str) -> Envelope:
    """The envelope of a body. Raises Refused with the reason `unreadable`."""
    try:
        return Envelope.model_validate_json(body)
    except ValidationError as error:
        # Names of fields only: answers and logs never contain values of a body.
        fields = sorted(
            {".".join(map(str, problem["loc"])) or "body" for problem in error.errors()}
        )
        raise Refused(
            "unreadable", f"It is not a Stripe event: {', '.join(fields)[:200]}."
        ) from None
    except OverflowError:
        raise Refused("unreadable", "It is not a Stripe event: created.") from None
