"""Logs: one JSON object a line on stderr, from structlog and from libraries that use `logging`.

Keys every line has: `time` (UTC), `level`, `event`, `component`, `process` (pid), `module`. What is about one
transaction carries `transaction_id`, given to the call or bound with `bound(transaction_id=…)`.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def configure(component: str, level: str = "info") -> None:
    """Send every log line of this process to stderr as JSON. `level`: "debug", "info", "warning" or "error"."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared = _shared(component)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `module: name`; call it as `log.info("what happened", field=value)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def bound(**fields: object) -> AbstractContextManager[object]:
    """Within `with bound(transaction_id=…):` every line of this task carries the fields."""
    return structlog.contextvars.bound_contextvars(**fields)


def _shared(component: str) -> list[Processor]:
    def who(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["component"] = component
        event["process"] = os.getpid()
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        who,
    ]


def _logger_name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if record is not None:
        event["module"] = record.name
    return event
