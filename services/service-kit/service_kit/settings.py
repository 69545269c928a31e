"""Settings of a service: one frozen pydantic-settings class, the only reader of the environment.

A service subclasses `ServiceSettings` with its own prefix and calls `load`. A value that is wrong and a variable
that nobody knows are both refused with the variable's name, so that a misspelt setting is never silently ignored.
"""

from __future__ import annotations

import os
import re
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

# What Kubernetes adds for a Service called like the prefix (TRINE_GATEWAY_PORT=tcp://…, TRINE_GATEWAY_SERVICE_HOST).
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")


class SettingsError(Exception):
    """Settings that cannot be used; the text names each variable, its value and what would be right."""


class ServiceSettings(BaseSettings):
    """What every service can be told. Subclass with `model_config = SettingsConfigDict(env_prefix="TRINE_X_")`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: Processes that share the service's ports.
    processes: int = Field(default=1, ge=1, le=256)
    #: Seconds between turning readiness off and refusing work, for load balancers to notice.
    drain_notice_s: float = Field(default=0.0, ge=0, le=300)


class ProcessSettings(BaseSettings):
    """What a supervising parent tells its children (`service_kit.processes`)."""

    model_config = SettingsConfigDict(env_prefix="TRINE_PROCESS_", frozen=True)

    #: 0-based number of this process among its siblings; None where nobody supervises it.
    index: int | None = None
    #: Process id of the supervising parent.
    parent: int | None = None


S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S]) -> S:
    """The settings found in the environment.

    Raises:
        SettingsError: a value is missing or wrong, or a variable with the service's prefix is not one of its settings.
    """
    prefix = settings.model_config.get("env_prefix", "").upper()
    known = {prefix + name.upper() for name in settings.model_fields}
    problems = [
        f"{name}: no such setting; there are {', '.join(sorted(known))}"
        for name in sorted(os.environ)
        if prefix and name.startswith(prefix) and name not in known and not _SERVICE_LINK.match(name[len(prefix) :])
    ]
    try:
        found = settings()
    except ValidationError as error:
        for e in error.errors():
            name = prefix + "_".join(str(part) for part in e["loc"]).upper()
            value = "" if e["type"] == "missing" else f" (found {os.environ.get(name)!r})"
            problems.append(f"{name}: {e['msg']}{value}")
        raise SettingsError("; ".join(problems)) from None
    if problems:
        raise SettingsError("; ".join(problems))
    return found
