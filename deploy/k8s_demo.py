"""`make k8s-demo`: Trine on the cluster at hand, from nothing to open ports; each step says how long it took.

    remove     what a demo before left
    release    the releases of --releases, or one trained here on generated transactions
    images     built; loaded, where the cluster is kind's or minikube's
    install    helm upgrade --install, until all pods are ready
    score      one transaction through the gateway, from outside the cluster
    load       a week's transactions, while the autoscaler looks on
    ports      of gateway, feature store and Prometheus, on this machine, until Ctrl-C

The cluster is that of kubectl's current context. `--no-wait` ends after the load; `--remove` takes everything away.
Exit codes: 0 done, 2 wrong usage, 4 something that is needed is not there or refused.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trine_cli.commands.replay import Unanswered

from deploy import images

NAMESPACE = RELEASE = "trine"
#: Label of the namespace that the demo made.
MARK = "trine-demo"
FOLDER = images.ROOT / ".run" / "k8s-demo"
TRINE = str(Path(sys.executable).with_name("trine"))
#: A release needs four weeks for training and validation, and the longest window 37 days before those.
DAYS, CUSTOMERS, TERMINALS = 68, 1_000, 2_000
#: The last week's transactions at so many a second take two minutes.
RATE, LOAD_DAYS = 110, 7
#: The gateway asks for little and is scaled early: a demo's load is small, and its machine too, which starts one pod at
#: a time beside those that answer.
VALUES = {
    "gateway.autoscaling.mode": "hpa",
    "gateway.autoscaling.maxReplicas": "3",
    "gateway.autoscaling.targetCPUUtilizationPercentage": "50",
    "gateway.autoscaling.scaleUpPods": "1",
    "gateway.autoscaling.scaleDownStabilizationSeconds": "30",
}
#: Service, its port, and the first port on this machine to try.
PORTS = (("gateway", 50051, 50051), ("gateway", 8080, 8080), ("feature-store", 8081, 8081), ("prometheus", 9090, 9090))


class DemoFailed(Exception):
    """Something that the demo needs is not there or refused; the text says what."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="k8s-demo", description="Trine on the cluster at hand.")
    parser.add_argument("--tag", default="", help="of the images; default: the chart's appVersion")
    parser.add_argument("--releases", type=Path, help="folder of releases; default: one is trained")
    parser.add_argument("--no-wait", action="store_true", help="end after the load instead of holding the ports open")
    parser.add_argument("--remove", action="store_true", help="uninstall, and delete the namespace")
    options = parser.parse_args(arguments)
    try:
        if options.remove:
            remove()
        else:
            demo(options.tag or images.default_tag(), options.releases, hold=not options.no_wait)
    except DemoFailed as error:
        print(f"k8s-demo: {error}", file=sys.stderr)
        sys.exit(4)
    except KeyboardInterrupt:
        print()


def demo(tag: str, releases: Path | None, *, hold: bool) -> None:
    """All steps. Raises DemoFailed."""
    began = time.monotonic()
    for program in ("docker", "kubectl", "helm"):
        if shutil.which(program) is None:
            raise DemoFailed(f"no {program} on PATH")
    context = run("kubectl", "config", "current-context").strip()
    make_room()
    data = FOLDER / f"data-{first_day()}"
    with step("release"):
        run(TRINE, "data", "generate", "--out", data, "--customers", CUSTOMERS, "--terminals", TERMINALS,
            "--days", DAYS, "--start", first_day())  # fmt: skip
        releases = releases or trained(data)
    with step("images"):
        names = [*images.IMAGES, images.RELEASES]
        for name, found in images.build(names, tag, releases).items():
            print(f"  trine/{name}:{tag}  {found['megabytes']:,.0f} MB")
        load(names, tag, context)
    with step("install"):
        install(tag)
    with ports() as local:
        gateway = f"127.0.0.1:{local['gateway', 50051]}"
        with step("score"):
            first = f"{load_begins()}T00:00:00Z"
            print(run(TRINE, "score", "--customer", 42, "--terminal", 17, "--amount", "12.34", "--time", first,
                      "--deadline-ms", 10_000, "--target", gateway))  # fmt: skip
        with step("load"):
            under_load(gateway, data)
        print(run("kubectl", "-n", NAMESPACE, "get", "pods,hpa"))
        print(f"all in {time.monotonic() - began:.0f} s; open on this machine:")
        print(f"  trine score --customer 42 --terminal 17 --amount 999 --target {gateway}")
        print(f"  gateway       http://127.0.0.1:{local['gateway', 8080]}/docs")
        print(f"  feature store http://127.0.0.1:{local['feature-store', 8081]}/docs")
        print(f"  Prometheus    http://127.0.0.1:{local['prometheus', 9090]}")
        if hold:
            print("Ctrl-C closes the ports; `make k8s-demo REMOVE=1` takes everything away", flush=True)
            threading.Event().wait()


def first_day() -> dt.date:
    """Of the transactions, whose last day is yesterday."""
    return dt.datetime.now(dt.UTC).date() - dt.timedelta(days=DAYS)


def load_begins() -> dt.date:
    """The first day that is sent."""
    return first_day() + dt.timedelta(days=DAYS - LOAD_DAYS)


def trained(data: Path) -> Path:
    """A folder with a release of the fraud model, trained on all but the last week."""
    releases = FOLDER / f"releases-{first_day()}"
    if not any(releases.glob("fraud-*/manifest.json")):
        test = first_day() + dt.timedelta(days=DAYS - 8)
        run(TRINE, "train", "fraud", "--transactions", data, "--test-start", test, "--releases", releases)
    return releases


def load(names: Sequence[str], tag: str, context: str) -> None:
    """Brings the images to the nodes of a cluster on this machine. Raises DemoFailed for any other."""
    if context.startswith("kind-"):
        images.kind_load(names, tag, context.removeprefix("kind-"))
    elif context == "minikube":
        run("minikube", "image", "load", *(f"trine/{name}:{tag}" for name in names))
    else:
        raise DemoFailed(
            f"context {context} is neither kind's nor minikube's: push the images to your registry and install the "
            "chart with global.imageRegistry"
        )


def make_room() -> None:
    """Takes away what a demo before left: its stream is where this one's transactions would be refused as too late.

    Raises DemoFailed where the namespace is somebody else's.
    """
    asked = ("--ignore-not-found", "-o", f"jsonpath={{.metadata.name}} {{.metadata.labels.{MARK}}}")
    found = run("kubectl", "get", "namespace", NAMESPACE, *asked).split()
    if len(found) == 1:
        raise DemoFailed(f"namespace {NAMESPACE} is there and not this demo's: delete it, or use another cluster")
    if found:
        with step("remove the demo before"):
            remove()


def install(tag: str) -> None:
    """The chart, until all of it is ready."""
    run("kubectl", "create", "namespace", NAMESPACE)
    run("kubectl", "label", "namespace", NAMESPACE, f"{MARK}=yes")
    settings = [word for name, value in (VALUES | {"image.tag": tag}).items() for word in ("--set", f"{name}={value}")]
    chart = images.ROOT / "charts" / "trine"
    run("helm", "upgrade", "--install", RELEASE, chart, "-n", NAMESPACE, *settings, "--wait", "--timeout", "8m")
    print(run("kubectl", "-n", NAMESPACE, "get", "pods"))


@contextlib.contextmanager
def ports() -> Iterator[dict[tuple[str, int], int]]:
    """Ports of services on this machine, by (service, port), for as long as the block lasts."""
    children: list[subprocess.Popen[bytes]] = []
    found: dict[tuple[str, int], int] = {}
    try:
        for service, port, first in PORTS:
            local = next(
                number
                for number in range(first, first + 1_000)
                if not _listens(number) and number not in found.values()
            )
            command = ["kubectl", "-n", NAMESPACE, "port-forward", f"service/{RELEASE}-{service}", f"{local}:{port}"]
            children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            found[service, port] = local
        until = time.monotonic() + 30
        while not all(_listens(number) for number in found.values()):
            if time.monotonic() > until or any(child.poll() is not None for child in children):
                raise DemoFailed("kubectl port-forward did not open its ports")
            time.sleep(0.1)
        yield found
    finally:
        for child in children:
            child.terminate()
            child.wait()


def under_load(gateway: str, data: Path) -> None:
    """Sends the last days' transactions; tells when the number of gateway pods changes. Raises DemoFailed."""
    command = [TRINE, "replay", "--transactions", str(data), "--from", str(load_begins()), "--rate", str(RATE)]
    replay = subprocess.Popen([*command, "--target", gateway, "--deadline-ms", "500"])
    shown = ""
    while replay.poll() is None:
        found = json.loads(run("kubectl", "-n", NAMESPACE, "get", "hpa", f"{RELEASE}-gateway", "-o", "json"))["status"]
        pods = f"{found.get('currentReplicas', 0)} gateway pods, {found.get('desiredReplicas', 0)} wanted"
        if pods != shown:
            print(f"  {pods}", flush=True)
            shown = pods
        time.sleep(2)
    # Where one got no answer in time, the replay has said how many.
    if replay.returncode not in (0, Unanswered.exit_code):
        raise DemoFailed(f"trine replay: exit code {replay.returncode}")


def remove() -> None:
    """Everything that `demo` installed; images stay."""
    run("helm", "uninstall", RELEASE, "-n", NAMESPACE, "--ignore-not-found")
    run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found")


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    print(f"k8s-demo: {name}", flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.1f} s", flush=True)


def run(*command: object) -> str:
    """What the command printed. Raises DemoFailed with its errors."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
