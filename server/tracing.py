"""OpenTelemetry traces: a span for each generating request, and one below it for each judgement of a prompt.

A client's trace is gone on with (W3C trace context), and vLLM, where it traces too, goes on with ours. Spans say what
the guard did, and nothing of what was asked, which target was found, or how surely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Timer
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from guard.audit import action_of
from guard.context import Judgement, RequestContext
from guard.errors import GuardUnavailable
from guard.types import Match

if TYPE_CHECKING:
    from guard.config import TracingSettings

NAME = "lethe"
PROVIDER = "vllm"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Route -> the operation as the conventions for generative AI call it; others are called by the end of their path."""
TRACEPARENT = b"traceparent", b"tracestate"
CLOSE_SECONDS = 3.0
_NS = 1_000_000_000
_TRACE_CONTEXT = TraceContextTextMapPropagator()


def endpoint_of(settings: TracingSettings, environ: Mapping[str, str]) -> str | None:
    """Where spans go, by the configuration or else by OpenTelemetry's own variables; None: nowhere."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if settings.endpoint is not None:
        return settings.endpoint.rstrip("/") + ("" if _grpc(environ) else "/v1/traces")
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rstrip("/")
    base = f"{base}/v1/traces" if base and not _grpc(environ) else base
    return environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or base or None


def exporter(endpoint: str, environ: Mapping[str, str]) -> SpanExporter:
    """Over HTTP, or gRPC where OpenTelemetry's variables ask for it."""
    if _grpc(environ):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint=endpoint)


def _grpc(environ: Mapping[str, str]) -> bool:
    general = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    return (environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or general) == "grpc"


class Tracing:
    """Makes spans. `serves` says whether a model is one of this server's: any other name is the client's own text."""

    def __init__(
        self, exporter: SpanExporter, serves: Callable[[str], bool], *, sample: float | None = None
    ) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: NAME}))
        sampler = None if sample is None else ParentBased(TraceIdRatioBased(sample))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._exporter = exporter
        self._tracer = self._provider.get_tracer(NAME)
        self._serves = serves

    def begin(self, scope: Scope, context: RequestContext) -> Traced:
        """The span of a request that has come in; the context is told of its trace."""
        headers = Headers(scope=scope)
        parent = _TRACE_CONTEXT.extract(
            {name.decode(): headers.get(name.decode(), "") for name in TRACEPARENT}
        )
        span = self._tracer.start_span(
            _operation(context), parent, SpanKind.SERVER, start_time=int(context.received_at * _NS)
        )
        context.trace_id = format_trace_id(span.get_span_context().trace_id)
        return Traced(self._tracer, span, self._serves)

    def close(self) -> None:
        """Send what waits, then stop; a collector that is away is given up."""
        giving_up = Timer(CLOSE_SECONDS, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


class Traced:
    """The span of one request that is being served."""

    def __init__(self, tracer: Any, span: Span, serves: Callable[[str], bool]) -> None:
        self._tracer = tracer
        self._span = span
        self._serves = serves

    def carried(self, scope: Scope) -> Scope:
        """The scope with this span as the one that whoever comes next goes on with."""
        carrier: dict[str, str] = {}
        _TRACE_CONTEXT.inject(carrier, set_span_in_context(self._span))
        kept = [(name, value) for name, value in scope["headers"] if name.lower() not in TRACEPARENT]
        return {**scope, "headers": [*kept, *((k.encode(), v.encode()) for k, v in carrier.items())]}

    def end(self, context: RequestContext, status: int, finished_at: float) -> None:
        """The request has ended, `finished_at` seconds since the epoch."""
        if self._span.is_recording():
            for judgement in context.judgements:
                self._judged(judgement)
            model = context.model if context.model and self._serves(context.model) else None
            self._span.update_name(f"{_operation(context)} {model}" if model else _operation(context))
            self._span.set_attributes(_known({**_request(context, status), "gen_ai.request.model": model}))
            if status >= 500 or (context.failure is not None and context.failure.status >= 500):
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(int(finished_at * _NS))

    def _judged(self, judgement: Judgement) -> None:
        """A judgement is over when it is known of: its span is made with the times that it had."""
        began = int(judgement.began_at * _NS)
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span("lethe.guard", parent, SpanKind.INTERNAL, start_time=began)
        span.set_attributes(_known(_judgement(judgement)))
        if judgement.failure is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(began + int(judgement.seconds * _NS))


def _operation(context: RequestContext) -> str:
    return OPERATIONS.get(context.route) or context.route.rpartition("/")[2]


def _request(context: RequestContext, status: int) -> dict[str, Any]:
    usage, failure = context.usage, context.failure
    unavailable = failure.reason if isinstance(failure, GuardUnavailable) else None
    return {
        "gen_ai.operation.name": _operation(context),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.response.finish_reasons": usage.finish_reasons or None,
        "gen_ai.usage.input_tokens": usage.input_tokens or None,
        "gen_ai.usage.output_tokens": usage.output_tokens or None,
        "http.request.method": "POST",
        "http.route": context.route,
        "http.response.status_code": status or None,
        "error.type": unavailable or (str(status) if status >= 500 else None),
        "lethe.decision_id": context.decision_id,
        "lethe.action": action_of(context, status) if context.admissions or context.withheld else None,
        "lethe.methods": list(dict.fromkeys(context.applied)) or None,
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    """What the guard did. Matches of targets in shadow mode change nothing and are left out."""
    decision = judgement.decision
    if decision is None:
        return {"error.type": judgement.failure}
    matches: list[Match] = [match for match in decision.matches if not match.shadow]
    methods = [chosen.method for chosen in decision.chosen]
    return {
        "lethe.snapshot": decision.snapshot,
        "lethe.action": decision.action,
        "lethe.detectors": sorted({match.detector for match in matches}) or None,
        "lethe.methods": list(dict.fromkeys(methods))
        or (["refusal"] if decision.action == "refuse" else None),
        "lethe.bypassed": judgement.bypassed or None,
        **{f"lethe.{name}_ms": round(spent, 3) for name, spent in decision.timings_ms.items()},
    }


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
