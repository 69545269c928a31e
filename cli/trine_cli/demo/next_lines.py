"""Lines to type after the demo: grpcurl, curl and Python, with the ports of the running stack."""

from __future__ import annotations

import sys
from pathlib import Path

from trine_cli.demo.scenario import Scenario

GRPC_PORT, REST_PORT = 50051, 8080


def next_lines(scenario: Scenario, grpc: str, rest: str, kept: bool, warehouse: str) -> list[tuple[str, str]]:
    """(what it does, what to type); where the stack is not kept, the first line starts one on those ports."""
    time = f"{scenario.day.isoformat()}T23:59:00Z"
    fields = f'"event_time":"{time}","customer_id":"42","terminal_id":"17","amount_minor":24900,"currency":"EUR"'
    trine = _shown(Path(sys.executable).parent / "trine")
    python = _shown(Path(sys.executable))
    lines = []
    if not kept:
        ports = f"--grpc-port {GRPC_PORT} --rest-port {REST_PORT}"
        lines.append(
            ("Start the stack again (or run the demo as: make demo KEEP=1)",
             f"{trine} up --releases {scenario.releases} {ports}")
        )  # fmt: skip
    lines += [
        (
            "Decide one transaction by gRPC, with the features that the model got",
            f'grpcurl -plaintext -H \'trine-explain: 1\' -d \'{{"transaction":{{"transaction_id":"try-grpc-1",'
            f"{fields}}}}}' \\\n  {grpc} trine.scoring.v1.ScoringService/ScoreTransaction",
        ),
        (
            "The same by REST; its interactive page is at " + f"{rest}/docs",
            f"curl -s {rest}/v1/transactions:score -H 'content-type: application/json' -H 'trine-explain: 1' \\\n"
            f'  -d \'{{"transaction_id":"try-rest-1",{fields}}}\'',
        ),
        ("From Python", f"{python} - <<'PYTHON'\n{_python(grpc, time)}PYTHON"),
    ]
    if kept:
        lines.append(
            ("Compute every decision again from the archive, your own included",
             f"{trine} decisions replay --releases {scenario.releases} --warehouse {warehouse} \\\n"
             f"  --transactions {scenario.dataset} --until {scenario.day.isoformat()}")
        )  # fmt: skip
        lines.append(("Metrics of the gateway", f"curl -s {rest}/metrics | grep '^trine_gateway_decisions'"))
    return lines


def _python(grpc: str, time: str) -> str:
    return f"""\
import grpc
from trine.scoring.v1 import scoring_pb2, scoring_pb2_grpc

stub = scoring_pb2_grpc.ScoringServiceStub(grpc.insecure_channel("{grpc}"))
transaction = scoring_pb2.Transaction(
    transaction_id="try-python-1", customer_id="42", terminal_id="17", amount_minor=24900, currency="EUR"
)
transaction.event_time.FromJsonString("{time}")
print(stub.ScoreTransaction(scoring_pb2.ScoreTransactionRequest(transaction=transaction), timeout=0.1))
"""


def _shown(path: Path) -> str:
    """Relative to here where it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
