"""An OTLP collector on loopback that keeps all it is sent."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    name: str
    trace: str
    id: str
    parent: str
    failed: bool
    seconds: float
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.paths: list[str] = []
        self.bodies: list[bytes] = []

    def take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        self.bodies.append(body)

    @property
    def text(self) -> str:
        """All that was sent, as text."""
        return "\n".join(str(ExportTraceServiceRequest.FromString(body)) for body in list(self.bodies))

    @property
    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]
        return [
            Span(
                one.name, one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex(), one.status.code == 2,
                (one.end_time_unix_nano - one.start_time_unix_nano) / 1e9,
                _read(one.attributes), _read(of.resource.attributes),
            )
            for request in requests
            for of in request.resource_spans
            for scope in of.scope_spans
            for one in scope.spans
        ]  # fmt: skip

    def wait(self, wanted: Callable[[Span], bool], seconds: float = 20.0) -> Span:
        """The only such span, as soon as it is here."""
        until = time.monotonic() + seconds
        while not (found := [span for span in self.spans if wanted(span)]) and time.monotonic() < until:
            time.sleep(0.05)
        (span,) = found
        return span

    def of(self, decision_id: str) -> Span:
        """The span of the request with that decision."""
        return self.wait(lambda span: span.attributes.get("lethe.decision_id") == decision_id)

    def below(self, parent: Span, name: str) -> Span:
        """The span of that name right below."""
        return self.wait(lambda span: (span.parent, span.name) == (parent.id, name))


def _read(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(one) for one in found.values] if kind == "array_value" else found


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            packed = self.headers.get("content-encoding") == "gzip"
            collector.take(self.path, gzip.decompress(body) if packed else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
