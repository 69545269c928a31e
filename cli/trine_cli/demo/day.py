"""The demo's day: its transactions with the fraud reports that come in meanwhile, and the truth about them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from feature_store.dataset import DAY_US
from numpy.typing import NDArray

from models.fraud.sources import load_fraud_reports, load_transactions, truth
from trine_cli.demo.tally import Tally
from trine_cli.traffic import SendOptions, Traffic, load_traffic, send


@dataclass(frozen=True, slots=True, eq=False)
class Day:
    """`fraud` bool[n]: what the latest report over all time says of each transaction, in the order of `traffic`."""

    traffic: Traffic
    fraud: NDArray[np.bool_]

    @property
    def total(self) -> int:
        return len(self.traffic)


def load_day(dataset: Path, day_us: int) -> Day:
    """Raises feature_store.dataset.DatasetError."""
    traffic = load_traffic(dataset, day_us, day_us + DAY_US)
    table = load_transactions(dataset, day_us, day_us + DAY_US)
    return Day(traffic, truth(table, load_fraud_reports(dataset)))


def load_warm_up(dataset: Path, day_us: int, count: int) -> Traffic:
    """The last transactions before the day. A state rebuilt until then knows them: sent again, they change nothing."""
    return load_traffic(dataset, day_us - DAY_US, day_us).last(count)


class Sending:
    """Sends the day in the background, each request when it is due whatever became of the others, and counts.

    `tally` says what came back so far, `settled` how many; `now_s` is seconds since the first request was due.
    """

    def __init__(self, day: Day, options: SendOptions) -> None:
        self.tally = Tally(day.total)
        self.settled = 0
        self._began_at = time.time()
        self._day, self._options = day, options
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sending", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    @property
    def now_s(self) -> float:
        return time.time() - self._began_at

    @property
    def reports_sent(self) -> int:
        """Fraud reports that were due so far."""
        return int((self._day.traffic.report_at <= self.settled).sum()) if self.settled else 0

    def join(self) -> Tally:
        """Wait until every request is settled. Raises what the sending failed with."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.tally

    def _run(self) -> None:
        tally = self.tally
        try:
            for reply in send(self._day.traffic, self._options):
                if not self.settled:
                    self._began_at = reply.sent_at - reply.index / self._options.rate
                tally.sent_s[reply.index] = reply.sent_at - self._began_at
                if reply.response is not None:
                    tally.answered(reply.index, reply.latency_s * 1_000, reply.response)
                else:
                    late = reply.error == "DEADLINE_EXCEEDED"
                    tally.failed(reply.index, reply.latency_s * 1_000, f"{reply.error}: {reply.detail}", late)
                self.settled += 1
        except BaseException as error:  # raised by `join`
            self._error = error
