"""One trace from the request to the commit, however many requests share a group; nothing where nobody traces."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors import lane_traces
from actors.local_router import LocalUsageRouter
from storage.object_store import LocalObjectStore
from tests.usage_log_support import TENANT, make_events


def test_each_requests_trace_ends_with_the_commit_that_made_it_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(lane_traces, "_tracer", provider.get_tracer("shards"))

    async def request(router: LocalUsageRouter, number: int) -> tuple[int, int, dict[int, int]]:
        with tracer.start_as_current_span("POST /v1/usage") as span:
            result = await router.ingest(TENANT, make_events(50, 50 * number))
            context = span.get_span_context()
            return context.trace_id, context.span_id, result.positions

    async def scene() -> list[tuple[int, int, dict[int, int]]]:
        router = LocalUsageRouter.open(LocalObjectStore(tmp_path), shards=2)
        done = list(await asyncio.gather(*(request(router, number) for number in range(6))))
        await router.ingest(TENANT, make_events(10, 1_000))  # nobody traces it
        await router.close()
        return done

    requests = asyncio.run(scene())
    commits = [span for span in exporter.get_finished_spans() if span.name == "usage commit"]
    for trace_id, span_id, positions in requests:
        own = [span for span in commits if span.context.trace_id == trace_id]
        assert {span.attributes["cloudbilling.lane"] for span in own} == set(positions), "one in each lane it went to"
        for span in own:
            assert span.parent is not None
            assert span.parent.span_id == span_id
            assert span.attributes["cloudbilling.number"] <= positions[span.attributes["cloudbilling.lane"]]
            assert span.start_time <= span.end_time
    assert len(commits) == sum(len(positions) for _, _, positions in requests)
