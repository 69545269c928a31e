"""Whatever dies, stalls or goes back in time: the state ends as a calm run's, every byte of it.

Every test sends the same load and compares with `clean`, which is itself compared with a recomputation from the
messages in plain Python.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.stream_scene import Load, NewScene, Scene, until
from trine_cli.local.fixtures import PrivateKafka, PrivateRedis
from trine_cli.local.process import ChildProcess
from trine_cli.local.redis_server import RedisServer

States = Mapping[tuple[str, str], bytes]

SLOW = 400
"""Rows of a micro-batch: few, so that a fault falls between many of them."""


def same(scene: Scene, clean: States) -> None:
    found = scene.states()
    assert found.keys() == clean.keys()
    different = [key for key in clean if found[key] != clean[key]]
    assert not different, f"{len(different)} of {len(clean)} states differ, e.g. {different[:3]}"


def reached(scene: Scene, goal: int) -> bool:
    return absorbed(scene) >= goal


def absorbed(scene: Scene) -> int:
    """Log entries that are in the state of either view, by the offsets in Redis."""
    return sum(int(meta.get("offset", 0)) for meta in scene.metas().values())


def test_killed_at_any_moment(new_scene: NewScene, load: Load, clean: States) -> None:
    scene = new_scene()
    scene.send(load.messages[: len(load.messages) // 2])
    rest = scene.sending(load.messages[len(load.messages) // 2 :], per_second=4_000)
    rng = random.Random(3)
    at = 0
    for _ in range(5):
        worker = scene.worker(static_membership=True, batch_rows=SLOW)
        goal = at + rng.randrange(1, 2_500)
        until(partial(reached, scene, goal), 30)
        worker.kill()
        assert absorbed(scene) >= goal > at
        at = absorbed(scene)
    assert at < len(load.messages), "the last kill should fall into the load, not behind it"
    rest.join()
    last = scene.worker(static_membership=True)
    scene.settled()
    same(scene, clean)
    assert last.stop() == 0
    assert not scene.letters()


def test_a_zombie_is_refused(new_scene: NewScene, private_redis: PrivateRedis, load: Load, clean: States) -> None:
    server = private_redis()
    scene = new_scene(redis_url=server.url)
    scene.send(load.messages[:12_000])
    zombie = scene.worker("zombie", batch_rows=SLOW)
    until(lambda: absorbed(scene) > 1_000, 30)
    stop_after_reading(zombie, scene, server)
    heir = scene.worker("heir", batch_rows=SLOW)
    until(lambda: owners(scene) == {"heir"}, 60)
    moved_on = absorbed(scene)
    until(lambda: absorbed(scene) > moved_on, 60)
    zombie.resume()
    until(lambda: scene.metric(zombie, "trine_worker_refused_writes_total", status="fenced") > 0, 90)
    scene.send(load.messages[12_000:])
    scene.settled()
    same(scene, clean)
    # It is a member like others now.
    assert heir.stop() == 0
    until(lambda: owners(scene) == {"zombie"}, 20)
    assert zombie.stop() == 0
    same(scene, clean)


def stop_after_reading(worker: ChildProcess, scene: Scene, server: RedisServer) -> None:
    """Pauses a worker that has asked for states and not written yet: what it does first when it wakes is write."""
    for _ in range(100):
        server.pause()
        until(lambda: unread_bytes(server.port) > 0, 20)
        worker.pause()
        server.resume()
        if "mget" in {client["cmd"] for client in scene.redis.client_list()}:
            return
        worker.resume()
    raise AssertionError("the worker was never seen reading")


def unread_bytes(port: int) -> int:
    """What clients have sent to a local port and its server has not read (proc(5), /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].split(":")[1], 16) for row in rows if int(row[1].split(":")[1], 16) == port)


def owners(scene: Scene) -> set[str]:
    """Workers that shards of either view are claimed by."""
    return {meta["owner"].split("/")[0] for meta in scene.metas().values()}


def test_broker_restarts(new_scene: NewScene, private_kafka: PrivateKafka, load: Load, clean: States) -> None:
    broker = private_kafka(shards=4)
    scene = new_scene(bootstrap=broker.bootstrap)
    worker = scene.worker(batch_rows=SLOW)
    scene.send(load.messages[:10_000])
    until(lambda: absorbed(scene) > 2_000, 30)
    broker.kill()
    time.sleep(1.0)
    broker.start()
    scene.send(load.messages[10_000:])
    scene.settled()
    same(scene, clean)
    assert worker.stop() == 0


def test_redis_goes_back_in_time(new_scene: NewScene, private_redis: PrivateRedis, load: Load, clean: States) -> None:
    server = private_redis(appendfsync="always")
    scene = new_scene(redis_url=server.url)
    sender = scene.sending(load.messages, per_second=6_000)
    worker = scene.worker(batch_rows=SLOW)
    until(lambda: absorbed(scene) > 3_000, 30)
    older = server.folder / "older.aof"
    shutil.copyfile(server.folder / "appendonly.aof", older)
    then = absorbed(scene)
    until(lambda: absorbed(scene) > then + 3_000, 30)
    _restart_from(server, older)
    sender.join()
    scene.settled()
    same(scene, clean)
    # And once more where nothing is sent any more: an idle shard has to notice by itself.
    _restart_from(server, older)
    assert absorbed(scene) < then + 3_000
    scene.settled()
    same(scene, clean)
    assert scene.metric(worker, "trine_worker_claims_total") > 2 * scene.shards
    assert worker.stop() == 0


def _restart_from(server: RedisServer, older: object) -> None:
    server.kill()
    shutil.copyfile(str(older), server.folder / "appendonly.aof")
    server.start()


def test_duplicates_and_another_order(new_scene: NewScene, load: Load, clean: States) -> None:
    rng = random.Random(5)
    messages = list(load.messages)
    # Blocks of a few hundred stay within the lateness of a day however they are mixed.
    mixed = []
    for i in range(0, len(messages), 300):
        block = messages[i : i + 300] + rng.choices(messages[max(0, i - 300) : i + 300], k=60)
        rng.shuffle(block)
        mixed += block
    scene = new_scene()
    scene.send(mixed)
    worker = scene.worker(batch_rows=SLOW)
    scene.settled()
    same(scene, clean)
    assert scene.metric(worker, "trine_worker_events_total", outcome="duplicate") > 1_000
    assert not scene.letters()


def test_workers_come_and_go(new_scene: NewScene, load: Load, clean: States) -> None:
    scene = new_scene()
    sender = scene.sending(load.messages, per_second=5_000)
    first = scene.worker("first", batch_rows=SLOW)
    until(lambda: absorbed(scene) > 1_000, 30)
    second = scene.worker("second", batch_rows=SLOW)
    until(lambda: owners(scene) == {"first", "second"}, 20)
    owned = [m["owner"].split("/")[0] for m in scene.metas().values()]
    assert owned.count("first") == owned.count("second") == scene.shards
    assert first.stop() == 0
    third = scene.worker("third", batch_rows=SLOW)
    second.kill()
    sender.join()
    scene.settled()
    same(scene, clean)
    assert third.stop() == 0
    assert not scene.letters()
