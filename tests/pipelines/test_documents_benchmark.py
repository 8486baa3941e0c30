"""The documents benchmark in the small size, so that it cannot rot; its figures are not looked at."""

import pytest

from benchmarks import documents

pytestmark = pytest.mark.postgres


def test_the_benchmark_archives_documents_beside_weasyprint() -> None:
    answer = documents.measure(small=True)
    assert answer["documents"] == documents.SMALL[0]
    assert answer["figure"] > 0
    assert answer["ratio_weasyprint"] > 0
