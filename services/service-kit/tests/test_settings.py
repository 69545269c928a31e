"""Settings name the variable at fault."""

from __future__ import annotations

import pytest
from pydantic_settings import SettingsConfigDict
from service_kit.settings import ServiceSettings, SettingsError, load


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TRINE_T_")
    redis_url: str
    port: int = 1


def test_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRINE_T_REDIS_URL", "redis://r")
    monkeypatch.setenv("TRINE_T_SERVICE_HOST", "10.0.0.1")  # Kubernetes' own, for a Service called trine-t
    monkeypatch.setenv("TRINE_T_PORT_80_TCP", "tcp://10.0.0.1:80")
    assert load(Settings).redis_url == "redis://r"


def test_names_what_is_missing_wrong_and_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRINE_T_PORT", "many")
    monkeypatch.setenv("TRINE_T_REDIS_ULR", "redis://r")
    with pytest.raises(SettingsError) as caught:
        load(Settings)
    text = str(caught.value)
    assert "TRINE_T_REDIS_URL: Field required" in text
    assert "TRINE_T_PORT:" in text
    assert "'many'" in text
    assert "TRINE_T_REDIS_ULR: no such setting" in text
