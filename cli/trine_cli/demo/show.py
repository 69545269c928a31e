"""The demo from beginning to end; the steps it runs are the library functions behind `trine`'s commands."""

from __future__ import annotations

import fcntl
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import redis
from batch_scorer.run_risks import RunRisks
from feature_store.rebuild import rebuild
from model_release import Release

from models.fraud.features import PLAN
from trine_cli.archived import await_archived
from trine_cli.decision_replay import replay_decisions
from trine_cli.demo.day import Day, Sending, load_day, load_warm_up
from trine_cli.demo.live_table import watch
from trine_cli.demo.next_lines import GRPC_PORT, REST_PORT, next_lines
from trine_cli.demo.night import Nights, NightsSeen, Published, prediction_text
from trine_cli.demo.outage import OutageMaker, degraded
from trine_cli.demo.outcome import Outcome
from trine_cli.demo.preparation import DATASET_STEPS_PER_DAY, TRAINING_STEPS, prepare_dataset, prepare_release
from trine_cli.demo.report import write_report
from trine_cli.demo.scenario import Scenario
from trine_cli.demo.tally import ANSWERED
from trine_cli.errors import CommandError, Unavailable
from trine_cli.kafka_archive import DECISIONS
from trine_cli.kafka_log import KafkaLog
from trine_cli.local.ports import HOST
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.stack import REDIS, Stack, StackOptions
from trine_cli.output import Output
from trine_cli.traffic import SendOptions, send
from trine_cli.warehouse_archive import WarehouseArchive

_SETTLE_S = 60.0


class PromiseBroken(CommandError):
    """The demo ran to its end, and something of what it says of Trine did not hold."""

    exit_code = 5


class Steps:
    """Names a step while it runs, and says what it took."""

    def __init__(self, output: Output) -> None:
        self.output, self.timings = output, dict[str, float]()

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Yields a list that takes the words about its result."""
        began, words = time.monotonic(), list[str]()
        yield words
        self.timings[name] = time.monotonic() - began
        self.output.note(f"{name:<12} {self.timings[name]:6.1f} s   {'; '.join(words)}")


def run(scenario: Scenario, keep: bool) -> None:
    """Raises PromiseBroken at the end, and what any step raises; leaves nothing running unless `keep`."""
    output = Output()
    scenario.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as owned:
        owned.enter_context(_alone(scenario.folder))
        # A plain kill should stop the stack too.
        owned.enter_context(_terminable())
        steps = Steps(output)
        release, day = _prepare(scenario, steps)
        server = _state(scenario, steps, owned)
        nights = Nights(scenario, server.url)
        published = _night(nights, steps)
        stack = _start(scenario, release, server, steps, owned)
        outcome = _live(scenario, release, day, stack, steps, nights, published)
        lines = next_lines(scenario, *_addresses(stack, keep), keep, stack.warehouse)
        write_report(outcome, release, lines, scenario.report)
        _conclude(output, outcome, lines, scenario.report)
        if keep:
            output.note(f"\nThe stack goes on running (logs: {stack.logs}). Ctrl-C stops it.")
            _until_interrupted()
        broken = [p for p in outcome.promises if not p.kept]
        if broken:
            raise PromiseBroken("; ".join(f"{p.what}: {p.found}" for p in broken))


def _prepare(scenario: Scenario, steps: Steps) -> tuple[Release, Day]:
    with (
        steps.step("data") as words,
        steps.output.progress("Making transactions", scenario.days * DATASET_STEPS_PER_DAY) as advance,
    ):
        dataset, made = prepare_dataset(scenario, advance)
        words.append(f"{dataset['transactions']:,} card transactions, {scenario.days} days, {_made(made)}")
    with steps.step("model") as words, steps.output.progress("Training", TRAINING_STEPS) as advance:
        release, made = prepare_release(scenario, dataset, advance)
        words.append(f"{release.id}, {_made(made)}")
    with steps.step("day") as words:
        day = load_day(scenario.dataset, scenario.day_us)
        frauds = int(day.fraud.sum())
        words.append(f"{scenario.day}: {day.total:,} transactions, {frauds} of them fraud; unseen by the model")
    return release, day


def _state(scenario: Scenario, steps: Steps, owned: ExitStack) -> RedisServer:
    """A Redis with the feature state up to the demo's day."""
    shutil.rmtree(scenario.stack, ignore_errors=True)
    logs = scenario.stack / "logs"
    with steps.step("state") as words:
        server = owned.enter_context(RedisServer(scenario.stack / REDIS, log=logs / f"{REDIS}.log"))
        with redis.Redis.from_url(server.url) as client:
            made = rebuild(client, PLAN, scenario.dataset, scenario.day_us, scenario.shards)
        entities = ", ".join(f"{n:,} {view}s" for view, n in made.entities.items())
        words.append(f"feature state rebuilt from history until {scenario.day}: {entities}")
    return server


def _night(nights: Nights, steps: Steps) -> list[Published]:
    with steps.step("night data") as words:
        made = nights.prepare()
        words.append(f"customers who leave, a shop's interactions, models of both, {_made(made)}")
    with steps.step("night") as words:
        published = nights.run_all()
        words += [f"{p.job} {p.rows:,} rows" for p in published]
    for p in published:
        steps.output.note(f"  {p.job} {p.key}: {prediction_text(p.prediction)}")
    return published


def _start(scenario: Scenario, release: Release, server: RedisServer, steps: Steps, owned: ExitStack) -> Stack:
    logs = scenario.stack / "logs"
    with steps.step("stack") as words:
        options = StackOptions(
            releases=scenario.releases,
            release=release.id,
            data=scenario.stack,
            logs=logs,
            shards=scenario.shards,
            redis_url=server.url,
            env=scenario.env,
        )
        stack = owned.enter_context(Stack(options))
        _await_calm(stack)
        words.append(f"Redis, Kafka, TorchServe, workers, gateway, feature store are up; gRPC at {stack.grpc}")
    return stack


def _live(
    scenario: Scenario,
    release: Release,
    day: Day,
    stack: Stack,
    steps: Steps,
    nights: Nights,
    published: list[Published],
) -> Outcome:
    with steps.step("warm-up") as words:
        warm_up = load_warm_up(scenario.dataset, scenario.day_us, scenario.warm_up)
        options = SendOptions(stack.grpc, scenario.rate, deadline_s=scenario.deadline_s)
        warm = sum(reply.response is not None for reply in send(warm_up, options))
        words.append(f"{len(warm_up):,} transactions of the evening before, which the state knows already; not counted")
    with steps.step("live") as words:
        options = SendOptions(
            stack.grpc,
            scenario.rate,
            deadline_s=scenario.deadline_s,
            kafka_bootstrap=stack.kafka_bootstrap,
            shards=scenario.shards,
        )
        sending = Sending(day, options)
        maker = OutageMaker(stack, sending, day.total, scenario.outage_s)
        sending.start()
        maker.start()
        watch(steps.output.people, day, sending, maker)
        tally, outage = sending.join(), maker.join()
        words.append(f"{day.total:,} transactions in {float(tally.sent_s.max()):.1f} s")
    with steps.step("replay") as words:
        _await_records(stack, warm + int((tally.state == ANSWERED).sum()))
        await_archived(stack.kafka_bootstrap, PLAN, _SETTLE_S)
        began = time.monotonic()
        decisions, _ = replay_decisions(
            WarehouseArchive(stack.warehouse),
            scenario.releases,
            (scenario.dataset, scenario.day_us),
            from_us=scenario.day_us,
            runs=RunRisks.below(str(scenario.dataset)),
        )
        took = time.monotonic() - began
        words.append(f"{decisions.decisions:,} decisions from the warehouse, {decisions.different:,} different")
    with steps.step("next night") as words:
        killed = nights.next_night()
        words.append(f"one run killed in its stage {killed.stage}, one published, one rolled back to")
    return Outcome(
        scenario, release.id, tally, day.fraud, outage, decisions, took, steps.timings, len(day.traffic.reports),
        NightsSeen(published, killed),
    )  # fmt: skip


def _conclude(output: Output, outcome: Outcome, lines: list[tuple[str, str]], report: Path) -> None:
    output.table(
        "\nPromises",
        ["", "promised", "seen"],
        [("✓" if p.kept else "✗", p.what, p.found) for p in outcome.promises],
    )
    for example in outcome.decisions.examples[:5]:
        output.note(f"different: {example.decision_id}: {'; '.join(map(str, example.differences[:3]))}")
    output.note("\nTo try next")
    for words, code in lines:
        output.note(f"\n# {words}\n{code}")
    output.note(f"\nReport: {report.resolve()}")


def _addresses(stack: Stack, keep: bool) -> tuple[str, str]:
    """gRPC and REST as the lines to try name them."""
    return (stack.grpc, stack.rest) if keep else (f"{HOST}:{GRPC_PORT}", f"http://{HOST}:{REST_PORT}")


def _await_calm(stack: Stack) -> None:
    """Until neither gateway nor worker reports a trouble: then the day begins with everything in use."""
    deadline = time.monotonic() + _SETTLE_S
    while troubles := {**degraded(stack.rest), **degraded(stack.worker_http)}:
        if time.monotonic() > deadline:
            raise Unavailable(f"the stack is not at its best after {_SETTLE_S:g} s: {troubles}")
        time.sleep(0.1)


def _await_records(stack: Stack, count: int) -> None:
    """Until Kafka has the records of `count` decisions: each is safe in the spool, and on its way."""
    log, deadline = KafkaLog(stack.kafka_bootstrap), time.monotonic() + _SETTLE_S
    while (there := sum(log.ends(DECISIONS).values())) < count:
        if time.monotonic() > deadline:
            raise Unavailable(f"Kafka has {there} of {count} decision records after {_SETTLE_S:g} s")
        time.sleep(0.2)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One demo at a time in a folder: a second one would take the first one's data away."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(f"another demo is running in {folder}") from None
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3_600)
    except KeyboardInterrupt:
        pass


def _made(now: bool) -> str:
    return "made now" if now else "there already"
