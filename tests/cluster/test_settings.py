"""Settings: defaults, file, environment, and a page that cannot differ from the class."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from actors.lane_scaling import ScalingBounds
from cluster.generate_docs import PAGES, ROOT
from cluster.platform_address import platform_address, usage_log_settings
from cluster.settings import Settings
from storage.gateways.webhook_http import OutboundRules


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"CLOUDBILLING_{field.upper()}" for field in Settings.model_fields), "CLOUDBILLING_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_the_embedded_profile_on_loopback() -> None:
    settings = Settings()
    assert settings.url == "http://127.0.0.1:8080"
    assert settings.database_url == ""
    assert settings.otel_endpoint == ""
    assert settings.data_dir == Path("data").resolve()


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "platform.toml"
    file.write_text("port = 8081\nshards = 3\n")
    monkeypatch.setenv("CLOUDBILLING_CONFIG", str(file))
    monkeypatch.setenv("CLOUDBILLING_PORT", "8082")
    settings = Settings()
    assert (settings.port, settings.shards) == (8082, 3)


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "platform.toml"
    file.write_text("prot = 8081\n")
    monkeypatch.setenv("CLOUDBILLING_CONFIG", str(file))
    with pytest.raises(ValidationError, match="prot"):
        Settings()


def test_an_address_beyond_loopback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDBILLING_HOST", "0.0.0.0")
    with pytest.raises(ValidationError, match="host"):
        Settings()


def test_claims_of_objects_need_a_database_that_is_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDBILLING_OBJECT_STORE_CLAIMS", "true")
    with pytest.raises(ValidationError, match="needs DATABASE_URL"):
        Settings()
    monkeypatch.setenv("CLOUDBILLING_DATABASE_URL", "postgresql://h/db")
    assert Settings().store_address().claims_dsn == "postgresql://h/db"


def test_what_is_set_reaches_the_processes_of_a_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine and on a cluster: there key limits, networks of webhooks and scaling by load were once left out."""
    given = {"DATA_DIR": str(tmp_path), "OBJECT_STORE": "s3://usage/log", "ARCHIVE_STORE": "s3://kept",
             "ARCHIVE_LOCK": "compliance", "LANES_MIN": "2", "LANES_MAX": "5", "SHARDS": "3", "SPARES": "2",
             "ID_CACHE_BYTES_MAX": "12345",
             "REPLICAS": "4",
             "KEY_REQUESTS_PER_S": "70", "KEY_EVENTS_PER_S": "9000", "WEBHOOK_NETWORKS": "10.1.0.0/16"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"CLOUDBILLING_{name}", value)
    settings = Settings()
    address, log = platform_address(settings, "dsn"), usage_log_settings(settings)
    assert (address.store.url, address.archive.address.url, address.archive.lock) == (
        "s3://usage/log", "s3://kept", "compliance",
    )  # fmt: skip
    limits = address.limits
    assert (limits.key_requests_per_s, limits.key_events_per_s, limits.api_processes) == (70, 9000, 4)
    assert address.outbound == OutboundRules.of("10.1.0.0/16")
    assert (log.address, log.shards, log.spares, log.scaling) == (address.store, 3, 2, ScalingBounds(2, 5))
    assert log.shard.id_cache_bytes_max == 12_345
    assert log.cache_directory == str(tmp_path / "cache")


def test_settings_do_not_change_after_the_start() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 9  # type: ignore[misc]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_generated_page_is_up_to_date(page: str) -> None:
    assert (ROOT / page).read_text(encoding="utf-8") == PAGES[page](), "run: make docs"
