"""One base class of errors: what went wrong, what to do about it, and the exit code."""

from __future__ import annotations


class BillingError(Exception):
    """Something that people can act on. The message says what is wrong, `advice` what to do.

    `exit_code`: 1 if something needs a person or Stripe could not be reached, 2 for wrong use or
    configuration.
    """

    exit_code = 2

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.advice}" if self.advice else message


class ConfigurationError(BillingError):
    """The pipeline cannot do this with its present configuration or arguments."""


class StripeUnreachable(BillingError):
    """Stripe could not be asked, so nothing was decided. A later run finishes."""

    exit_code = 1


class UnusableInput(BillingError):
    """A day's readings cannot be read as they are; the message names the file, and the column.

    The day fails. It never becomes a smaller bill.
    """

    exit_code = 1
