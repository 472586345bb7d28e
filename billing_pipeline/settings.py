"""Every environment variable, read and validated once.

Nothing else in this package looks at the environment. Loading settings needs no Stripe key;
what needs one asks for it with `Settings.require_key`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.rules.eligibility import DEFAULT_POLICY, Policy
from billing_pipeline.rules.gate import Gates
from billing_pipeline.rules.model import Formula, Measure, MeterSpec
from billing_pipeline.stripe_facts import API_VERSION, READS_A_MONTH, KeyKind

DEFAULT_METERS = (
    MeterSpec(event_name="active_sensors", formula=Formula.LAST, measure=Measure.ACTIVE_SENSORS),
    MeterSpec(
        event_name="temperature_readings", formula=Formula.SUM, measure=Measure.READING_VOLUME
    ),
)

SPARK_REMOTE = re.compile(r"sc://[\w.-]+(:\d{1,5})?(/(;[^;]+)*)?")
"""Host and port, then parameters, which may be secrets."""

_KEY = re.compile(r"(sk|rk)_(live|test)_\w+")
_MEMORY = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B)", re.IGNORECASE)


class Settings(BaseSettings):
    """The resolved configuration. Secrets are `SecretStr`: they print as asterisks."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    stripe_secret_key: SecretStr | None = None
    stripe_webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    stripe_api_base: str = "https://api.stripe.com"
    stripe_meter_events_base: str = ""
    stripe_api_version: str = API_VERSION

    billing_readings_uri: str = "var/readings"
    billing_snapshots_uri: str = "var/snapshots"
    billing_database_url: SecretStr = SecretStr("sqlite:///var/billing.db")
    billing_start_day: date = date(2025, 1, 1)
    billing_customers_file: Path | None = None
    billing_memory_limit: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    billing_active_window_days: int = Field(default=1, ge=1, le=366)
    billing_engine: Literal["duckdb", "spark"] = "duckdb"
    billing_spark_remote: SecretStr = SecretStr("local[*]")
    billing_meters: tuple[MeterSpec, ...] = DEFAULT_METERS
    billing_subscription_policy: dict[str, Policy] = Field(default_factory=dict)
    billing_gates: Gates = Gates()
    billing_verification_reads: int = Field(default=READS_A_MONTH, ge=0)
    billing_alert_url: SecretStr | None = None

    @field_validator("stripe_secret_key")
    @classmethod
    def _a_secret_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not _KEY.fullmatch(key.get_secret_value()):
            raise ValueError(
                "is not a Stripe secret or restricted key (sk_test_…, sk_live_…, rk_test_…, "
                "rk_live_…); publishable keys and webhook secrets cannot report usage"
            )
        return key

    @field_validator("stripe_webhook_secret", mode="before")
    @classmethod
    def _several_secrets(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("stripe_api_base", "stripe_meter_events_base")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError(f"is not an http(s) address: {value!r}")
        return value.rstrip("/")

    @field_validator("billing_alert_url")
    @classmethod
    def _a_secret_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme not in ("http", "https"):
            raise ValueError("is not an http(s) address")
        return value

    @field_validator("billing_database_url")
    @classmethod
    def _a_database_url(cls, value: SecretStr) -> SecretStr:
        if "://" not in value.get_secret_value():
            raise ValueError("is not a database URL such as sqlite:///var/billing.db")
        return value

    @field_validator("billing_spark_remote")
    @classmethod
    def _a_spark(cls, value: SecretStr) -> SecretStr:
        remote = value.get_secret_value()
        if not (SPARK_REMOTE.fullmatch(remote) or re.fullmatch(r"local(\[[\w*,]+\])?", remote)):
            raise ValueError(
                "is not sc://host:port (parameters behind it: sc://host:port/;token=…), or "
                "local[*] for a Spark on this machine"
            )
        if ";session_id=" in remote:
            raise ValueError("must not name a session: two runs would share it")
        return value

    @field_validator("billing_memory_limit")
    @classmethod
    def _a_size(cls, value: str) -> str:
        if value and not _MEMORY.fullmatch(value):
            raise ValueError(f"is not a size such as 4GB or 1500MB: {value!r}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        names = [meter.event_name for meter in self.billing_meters]
        if len(set(names)) != len(names):
            raise ValueError("BILLING_METERS names an event_name twice")
        return self

    @cached_property
    def meter_events_base(self) -> str:
        """The address of meter event streams: that of the API if only this one was changed."""
        if self.stripe_meter_events_base:
            return self.stripe_meter_events_base
        if self.stripe_api_base == "https://api.stripe.com":
            return "https://meter-events.stripe.com"
        return self.stripe_api_base

    @cached_property
    def subscription_policy(self) -> dict[str, Policy]:
        """What each status of a subscription means for usage."""
        return {**DEFAULT_POLICY, **self.billing_subscription_policy}

    @cached_property
    def memory_limit(self) -> str:
        """DuckDB's memory limit: as configured, otherwise half of this machine's RAM."""
        if self.billing_memory_limit:
            return self.billing_memory_limit
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"{ram // 2 // 2**20}MiB"

    @property
    def spark(self) -> str | None:
        """The address of Spark, if it counts; None if DuckDB does."""
        if self.billing_engine != "spark":
            return None
        return self.billing_spark_remote.get_secret_value()

    @cached_property
    def key_kind(self) -> KeyKind:
        """The kind of key; it decides the rate of requests."""
        if urlsplit(self.stripe_api_base).hostname in ("127.0.0.1", "localhost", "::1"):
            return "local"
        return "live" if "_live_" in self.require_key() else "sandbox"

    @property
    def livemode(self) -> bool:
        """Whether the key is a live one."""
        return "_live_" in self.require_key()

    def require_key(self) -> str:
        """The Stripe key in clear. Raises ConfigurationError if there is none."""
        if self.stripe_secret_key is None:
            raise ConfigurationError(
                "STRIPE_SECRET_KEY is not set, so nothing can be reported to Stripe. Without it "
                "these still work: `billing run --dry-run`, `billing plan`, `billing explain`, "
                "`billing demo`, `billing customers`, `billing ui` and counting in Dagster."
            )
        return self.stripe_secret_key.get_secret_value()

    def masked(self) -> dict[str, str]:
        """Every variable by name, secrets masked, for `billing doctor`."""
        from sqlalchemy import make_url

        key = self.stripe_secret_key.get_secret_value() if self.stripe_secret_key else None
        return {
            "STRIPE_SECRET_KEY": _masked(key),
            "STRIPE_WEBHOOK_SECRET": f"{len(self.stripe_webhook_secret)} secret(s)",
            "STRIPE_API_BASE": self.stripe_api_base,
            "STRIPE_METER_EVENTS_BASE": self.meter_events_base,
            "STRIPE_API_VERSION": self.stripe_api_version,
            "BILLING_READINGS_URI": self.billing_readings_uri,
            "BILLING_SNAPSHOTS_URI": self.billing_snapshots_uri,
            "BILLING_DATABASE_URL": make_url(
                self.billing_database_url.get_secret_value()
            ).render_as_string(hide_password=True),
            "BILLING_START_DAY": self.billing_start_day.isoformat(),
            "BILLING_CUSTOMERS_FILE": str(self.billing_customers_file or "(not set)"),
            "BILLING_MEMORY_LIMIT": self.memory_limit,
            "BILLING_ACTIVE_WINDOW_DAYS": str(self.billing_active_window_days),
            "BILLING_ENGINE": self.billing_engine,
            "BILLING_SPARK_REMOTE": self.billing_spark_remote.get_secret_value().split("/;")[0],
            "BILLING_SUBSCRIPTION_POLICY": ", ".join(
                f"{status}: {policy}" for status, policy in self.subscription_policy.items()
            ),
            "BILLING_GATES": json.dumps(asdict(self.billing_gates)),
            "BILLING_VERIFICATION_READS": f"{self.billing_verification_reads} a month",
            "BILLING_ALERT_URL": "(not set)" if self.billing_alert_url is None else "set",
            "BILLING_METERS": ", ".join(
                f"{m.event_name} ({m.formula}, {m.measure})" for m in self.billing_meters
            ),
        }


def _masked(key: str | None) -> str:
    """Enough of a key to recognize it: its kind, and the last four characters of a long one."""
    if key is None:
        return "(not set)"
    return f"{key[:8]}…{key[-4:] if len(key) >= 24 else ''}"


def load_settings() -> Settings:
    """Settings from the environment. Raises ConfigurationError naming each bad variable."""
    from pydantic import ValidationError

    try:
        return Settings()
    except SettingsError as error:  # a variable that should hold JSON and does not
        json_fields = ("billing_meters", "billing_gates", "billing_subscription_policy")
        name = next((f.upper() for f in json_fields if f in str(error)), str(error))
        raise ConfigurationError(f"{name}: it must be JSON, as the README shows") from None
    except ValidationError as error:
        # Only the name and the reason: the value may be a secret.
        lines = [
            f"{str(problem['loc'][0]).upper() if problem['loc'] else 'configuration'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("\n".join(lines)) from None
