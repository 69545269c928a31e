"""Constant load from outside the cluster while something happens inside, and what became of every transaction."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from trine_k8s.load_process import Attempt

DEADLINE_MS = 500.0
_END_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """All attempts of one load, by the time at which their transactions were due."""

    attempts: tuple[Attempt, ...]
    rate: float = 0.0

    @property
    def answered(self) -> dict[str, Attempt]:
        """The attempt that got an answer, by transaction."""
        return {a.id: a for a in self.attempts if a.status == "OK"}

    @property
    def unanswered(self) -> set[str]:
        """Transactions that never got an answer."""
        return {a.id for a in self.attempts} - self.answered.keys()

    @property
    def failures(self) -> Counter[str]:
        """Attempts that failed, by status and reason."""
        return Counter(f"{a.status}: {a.reason}"[:160] for a in self.attempts if a.status != "OK")

    @property
    def sources(self) -> Counter[str]:
        return Counter(a.source + (f" ({a.reason})" if a.reason else "") for a in self.answered.values())

    @property
    def releases(self) -> Counter[str]:
        return Counter(a.release for a in self.answered.values())

    @property
    def share_by_model(self) -> float:
        found = self.answered.values()
        return sum(a.source == "model" for a in found) / max(len(found), 1)

    @property
    def late_by_gateway(self) -> int:
        return sum(a.gateway_ms > DEADLINE_MS for a in self.answered.values())

    @property
    def late_by_client(self) -> float:
        """Share of transactions whose answer came more than the deadline after they were due."""
        found = self.answered.values()
        return sum(a.took_ms > DEADLINE_MS or a.attempt > 1 for a in found) / max(len(found), 1)

    def customers(self) -> Counter[str]:
        """How many transactions of each customer were answered."""
        return Counter(a.customer for a in self.answered.values())

    def between(self, from_: float, to: float) -> Outcome:
        """Of the transactions that were due then, Unix seconds."""
        return Outcome(tuple(a for a in self.attempts if from_ <= a.at < to), self.rate)

    def summary(self) -> str:
        took = sorted(a.took_ms for a in self.answered.values()) or [0.0]
        by_gateway = max((a.gateway_ms for a in self.answered.values()), default=0.0)
        return (
            f"{len(self.answered)} answered at {self.rate:g}/s, sources {dict(self.sources)}, releases"
            f" {dict(self.releases)}, failures {dict(self.failures)}, unanswered {len(self.unanswered)}, client p50"
            f" {took[len(took) // 2]:.0f} p99 {took[len(took) * 99 // 100]:.0f} max {took[-1]:.0f} ms, late by client"
            f" {self.late_by_client:.2%}, gateway's longest {by_gateway:.0f} ms, late by gateway {self.late_by_gateway}"
        )


def together(outcomes: Iterable[Outcome]) -> Outcome:
    return Outcome(tuple(attempt for outcome in outcomes for attempt in outcome.attempts))


@dataclass(slots=True)
class Load:
    """`with Load(target, rate) as load: ...`, then `load.outcome`."""

    target: str
    rate: float = 20.0
    in_flight: int = 0
    seconds: float = 3_600.0
    prefix: str = field(default_factory=lambda: f"k{secrets.token_hex(4)}")
    first: int = 0
    outcome: Outcome = field(default_factory=lambda: Outcome(()))
    _process: subprocess.Popen[str] | None = None
    _lines: list[str] = field(default_factory=list)
    _reader: threading.Thread | None = None

    def __enter__(self) -> Load:
        command = [
            sys.executable, "-m", "trine_k8s.load_process", "--target", self.target, "--prefix", self.prefix,
            "--rate", str(self.rate), "--in-flight", str(self.in_flight), "--seconds", str(self.seconds),
            "--first", str(self.first),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        assert process.stdout is not None
        self._process = process
        self._reader = threading.Thread(target=lambda: self._lines.extend(process.stdout or ()), daemon=True)
        self._reader.start()
        return self

    def await_time(self, until: float) -> None:
        """Lets the load run until then, Unix seconds. Raises AssertionError where its client has ended."""
        assert self._process is not None
        try:
            code = self._process.wait(max(until - time.time(), 0))
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(f"the load client has ended with {code}")

    def run_out(self) -> None:
        """Until it ends by itself, after `seconds`."""
        self._end(self.seconds + _END_S)

    def finish(self) -> Outcome:
        """Starts no more calls, and waits for those under way. Raises AssertionError where the client does not end."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._end(_END_S)
        return self.outcome

    def _end(self, timeout_s: float) -> None:
        process, reader = self._process, self._reader
        assert process is not None
        assert reader is not None
        try:
            reader.join(timeout_s)
            code = process.wait(10)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the load client has not ended in {timeout_s:g} s") from None
        finally:
            process.kill()
            process.wait()
            self._process = None
        assert code == 0, f"the load client ended with {code}"
        self.outcome = Outcome(tuple(Attempt(**json.loads(line)) for line in self._lines), self.rate)
        print(self.outcome.summary())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif self._process is not None:
            self._process.kill()
            self._process.wait()
