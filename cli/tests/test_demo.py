"""The demo's arithmetic and its report; the demo itself runs as `make demo`."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from batch_scorer.outcome import Report
from model_release import Release
from model_release.testing import write_toy_release
from trine.scoring.v1.scoring_pb2 import (
    SCORE_SOURCE_MODEL,
    SCORE_SOURCE_RULES,
    VERDICT_APPROVE,
    VERDICT_DENY,
    VERDICT_REVIEW,
    ScoreTransactionResponse,
)
from trine_cli.demo.next_lines import next_lines
from trine_cli.demo.night import Killed, NightsSeen, Published
from trine_cli.demo.outage import Outage
from trine_cli.demo.outcome import Outcome
from trine_cli.demo.report import write_report
from trine_cli.demo.scenario import Scenario
from trine_cli.demo.tally import DENY, REVIEW, Tally

from models.fraud.features import PLAN

_TOTAL = 2_000
_NIGHTS = NightsSeen(
    [
        Published("card-risk", "card-risk-1", 15_000, 9.0, "customer:42", {"risk": 0.004, "level": "low"}),
        Published("recommendations", "recommendations-1", 2_000, 9.0, "42", {"items": [{"item": "7", "score": 0.9}]}),
    ],
    Killed("score", "churn-1", "churn-1", "churn-2", "churn-1"),
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_toy_release(tmp_path_factory.mktemp("releases"), PLAN)


def _outcome(folder: Path, release: str = "fraud-0123456789ab") -> Outcome:
    """Two hundred a second for ten seconds; rules answer from second 4 to 8, when TorchServe is away."""
    tally = Tally(_TOTAL)
    rng = np.random.default_rng(1)
    for i in range(_TOTAL):
        at = i / 200
        tally.sent_s[i] = at
        away = 4.0 <= at <= 8.0
        response = ScoreTransactionResponse(
            verdict=VERDICT_DENY if i % 100 == 0 else VERDICT_REVIEW if i % 50 == 0 else VERDICT_APPROVE,
            source=SCORE_SOURCE_RULES if away else SCORE_SOURCE_MODEL,
            score=float(rng.beta(0.3, 8)),
            feature_lag_ms=int(rng.integers(10, 900)),
            fallback_reason="model_down" if away else "",
        )
        tally.answered(i, float(rng.gamma(2, 3)), response)
    fraud = np.arange(_TOTAL) % 200 == 0
    scenario = Scenario(folder=folder, rate=200.0)
    decisions = Report(decisions=_TOTAL, sources=Counter(model=1_199, rules=801), lag_ms=[5, 9, 400])
    return Outcome(scenario, release, tally, fraud, Outage(4.0, 7.0, 8.0), decisions, 1.5, {"live": 10.0}, 7, _NIGHTS)


def test_a_good_day_keeps_every_promise(tmp_path: Path) -> None:
    outcome = _outcome(tmp_path)
    assert [p.kept for p in outcome.promises] == [True] * 6
    assert outcome.quality(DENY) == (0.5, 1.0)
    assert outcome.quality(REVIEW) == (0.25, 1.0)
    assert outcome.by_source == {"model": 1_199, "rules": 801}


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ("late", 0),
        ("not back", 1),
        ("rules outside the outage", 2),
        ("different", 3),
        ("not all replayed", 3),
        ("killed", 5),
    ],
)
def test_each_promise_can_be_broken(tmp_path: Path, broken: str, promise: int) -> None:
    outcome = _outcome(tmp_path)
    if broken == "late":
        outcome.tally.failed(1_000, 120.0, "DEADLINE_EXCEEDED: Deadline Exceeded", late=True)
    elif broken == "not back":
        outcome = replace(outcome, outage=Outage(4.0))
    elif broken == "rules outside the outage":
        outcome.tally.source[:13] = 3
    elif broken == "different":
        outcome.decisions.different = 1
    elif broken == "killed":
        killed = Killed("score", "churn-1", "churn-2", "churn-2", "churn-1")
        outcome = replace(outcome, nights=replace(_NIGHTS, killed=killed))
    else:
        outcome.decisions.decisions -= 1
    assert [i for i, p in enumerate(outcome.promises) if not p.kept] == [promise]


class _Page(HTMLParser):
    """What a page is made of, and whether its tags are in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_whole_file(tmp_path: Path, release: Release) -> None:
    outcome = _outcome(tmp_path, release.id)
    lines = next_lines(outcome.scenario, "127.0.0.1:1", "http://127.0.0.1:2", True, "127.0.0.1:3")
    write_report(outcome, release, lines, outcome.scenario.report)
    text = outcome.scenario.report.read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert page.tags["svg"] == 5
    assert page.tags["script"] == 0
    assert page.links == []
    assert "url(" not in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().replace("finance", "")
    assert "every promise kept" in text
    assert release.id in text
    assert "prefers-color-scheme: dark" in text


def test_the_report_of_a_bad_day_says_so(tmp_path: Path, release: Release) -> None:
    outcome = _outcome(tmp_path, release.id)
    outcome.decisions.different = 3
    write_report(outcome, release, [], outcome.scenario.report)
    assert "a promise is broken" in outcome.scenario.report.read_text()


@pytest.mark.parametrize("kept", [True, False])
def test_lines_to_try_are_sound_shell(tmp_path: Path, kept: bool) -> None:
    lines = next_lines(Scenario(tmp_path), "127.0.0.1:50051", "http://127.0.0.1:8080", kept, "127.0.0.1:9092")
    for words, code in lines:
        assert subprocess.run(["bash", "-n", "-c", code], check=False).returncode == 0, words
    assert any("trine up" in code for _, code in lines) is not kept
