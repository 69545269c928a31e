"""Images: one list for make and skaffold, and what every Dockerfile must hold to."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]


def _images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("images", ROOT / "deploy" / "images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


IMAGES: dict[str, str] = _images().IMAGES
SERVICES = sorted(IMAGES.values())


def test_skaffold_builds_what_make_builds() -> None:
    config = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    built = {one["image"]: one["docker"]["dockerfile"] for one in config["build"]["artifacts"]}
    assert built == {f"trine/{name}": file for name, file in IMAGES.items()} | {
        "trine/releases": "models/releases.Dockerfile"
    }


@pytest.mark.parametrize("file", [*SERVICES, "models/releases.Dockerfile"])
def test_an_image_runs_as_a_user_by_number_and_says_what_it_is(file: str) -> None:
    text = (ROOT / file).read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    for label in ("title", "description", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in text
    assert "# syntax=" not in text


@pytest.mark.parametrize("file", SERVICES)
def test_a_service_is_built_in_stages_and_what_builds_it_stays_behind(file: str) -> None:
    stages = (ROOT / file).read_text().split("\nFROM ")
    assert all(stage.startswith("python:3.11-slim-bookworm") for stage in stages[1:])
    assert len(stages) == 4
    assert not re.search(r"\bpip\b|gcc|grpcio-tools", stages[-1])
    assert stages[-1].index("--from=needed") < stages[-1].index("--from=packages"), "what changes often comes last"


def test_the_tag_is_the_charts_version_of_the_application() -> None:
    chart = ROOT / "charts" / "trine" / "Chart.yaml"
    tag = _images().default_tag()
    assert tag == (yaml.safe_load(chart.read_text())["appVersion"] if chart.is_file() else "dev")


def test_what_the_charts_embedded_parts_run_is_loaded_with_the_images() -> None:
    values = yaml.safe_load((ROOT / "charts" / "trine" / "values.yaml").read_text())
    assert {values[name]["embedded"]["image"] for name in ("redis", "kafka", "prometheus")} == set(_images().EMBEDDED)
