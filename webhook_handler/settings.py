"""The environment of the service, read and validated once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class ConfigurationError(Exception):
    """The service cannot start with its present configuration; the message says what to fix."""


class WebhookSettings(BaseSettings):
    """The resolved configuration. Secrets are `SecretStr`: they print as asterisks."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    stripe_webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode, Field(min_length=1)]
    """One per endpoint in Stripe, and two of one endpoint while its secret rotates."""
    billing_database_url: SecretStr = SecretStr("sqlite:///var/billing.db")

    @field_validator("stripe_webhook_secret", mode="before")
    @classmethod
    def _several_secrets(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    def secrets(self) -> tuple[str, ...]:
        """The signing secrets in clear."""
        return tuple(secret.get_secret_value() for secret in self.stripe_webhook_secret)


def load_settings() -> WebhookSettings:
    """Settings from the environment. Raises ConfigurationError naming each bad variable."""
    try:
        return WebhookSettings()  # type: ignore[call-arg]  # the environment gives the secrets
    except ValidationError as error:
        # Only the name: the value may be a secret.
        names = sorted({str(problem["loc"][0]).upper() for problem in error.errors()})
        raise ConfigurationError(
            f"{', '.join(names)}: needed, and missing or not usable. STRIPE_WEBHOOK_SECRET holds "
            "the signing secrets of your endpoints in Stripe (whsec_…), separated by commas."
        ) from None
