"""The service's settings, read from the environment and validated once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class ConfigurationError(Exception):
    """The service cannot start with this configuration. The message says what to change."""


class WebhookSettings(BaseSettings):
    """The settings. Secrets are `SecretStr`, which prints as asterisks."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    stripe_webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode, Field(min_length=1)]
    """One for each endpoint in Stripe; two for an endpoint whose secret is being rotated."""
    billing_database_url: SecretStr = SecretStr("sqlite:///var/billing.db")

    @field_validator("stripe_webhook_secret", mode="before")
    @classmethod
    def _several_secrets(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(each.strip() for each in value.split(",") if each.strip())
        return value

    def secrets(self) -> tuple[str, ...]:
        """The signing secrets in plain text."""
        return tuple(secret.get_secret_value() for secret in self.stripe_webhook_secret)


def load_settings() -> WebhookSettings:
    """Settings from the environment. Raises ConfigurationError with each bad variable's name."""
    try:
        return WebhookSettings()  # type: ignore[call-arg]  # the environment gives the secrets
    except ValidationError as error:
        # Only names: values may be secret.
        names = sorted({str(problem["loc"][0]).upper() for problem in error.errors()})
        raise ConfigurationError(
            f"{', '.join(names)}: missing or invalid. STRIPE_WEBHOOK_SECRET must contain the "
            "signing secrets of your endpoints in Stripe (whsec_…), separated by commas."
        ) from None
