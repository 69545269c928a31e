"""REST errors as problem+json (RFC 9457) that name the field at fault; gRPC errors with the same in their details."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import grpc
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from google.protobuf.any_pb2 import Any as ProtobufAny
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from pydantic import BaseModel
from starlette.exceptions import HTTPException

CONTENT_TYPE = "application/problem+json"


class ProblemBody(BaseModel):
    """RFC 9457, and `field`: path of the field at fault, empty where none is."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str = ""


def problem(status: int, detail: str, field: str = "") -> JSONResponse:
    """A reply with status `status` and a problem body."""
    body = ProblemBody(title=HTTPStatus(status).phrase, status=status, detail=detail, field=field)
    return JSONResponse(body.model_dump(), status, media_type=CONTENT_TYPE)


def answer_with_problems(app: FastAPI, max_body_bytes: int) -> None:
    """Everything that `app` refuses by itself becomes a problem: bodies too large, malformed or of wrong types."""

    @app.middleware("http")
    async def limit_body(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.method in ("POST", "PUT", "PATCH"):
            length = request.headers.get("content-length", "")
            if not length.isdigit() or int(length) > max_body_bytes:
                found = f"{length} bytes" if length.isdigit() else "no length"
                return problem(422, f"body: has {found}; must have at most {max_body_bytes} bytes", "body")
        return await call(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part != "body"]
        field = "body" if first["type"] == "json_invalid" or not where else ".".join(where)
        return problem(422, f"{field}: {first['msg']}", field)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.BAD_REQUEST:
            # JSON that its parser gives up on, e.g. nested too deeply.
            return problem(422, f"body: {error.detail}", "body")
        return problem(error.status_code, str(error.detail))


def status_details(
    code: grpc.StatusCode, message: str, field: str = "", reason: str = ""
) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata for `context.abort`: google.rpc.Status, with a BadRequest where a field is at fault and an
    ErrorInfo where programs know a `reason`."""
    status = status_pb2.Status(code=code.value[0], message=message)
    details = []
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="trine"))
    for detail in details:
        packed = ProtobufAny()
        packed.Pack(detail)
        status.details.append(packed)
    return (("grpc-status-details-bin", status.SerializeToString()),)
