"""Files beside the code that must stay true: cluster files, lock file, make targets, pages and their links."""

import json
import re
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = "setup run test check test-services bench bench-long chaos soak mutation golden docs help".split()  # noqa: SIM905


def test_the_cluster_file_fits_the_schema_of_ray() -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    commands = " ".join(cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == 2, "every start sets the authentication mode"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own models
def test_the_serve_file_fits_the_schema_of_serve_and_names_what_exists() -> None:
    from ray.serve.schema import ServeDeploySchema

    from deployments import serve_app

    form = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    deployed = ServeDeploySchema.model_validate(form)
    module, function = deployed.applications[0].import_path.split(":")
    assert find_spec(module) is not None
    assert f"def {function}(" in (ROOT / (module.replace(".", "/") + ".py")).read_text()
    names = {deployment["name"] for deployment in form["applications"][0]["deployments"]}
    source = Path(serve_app.__file__).read_text()
    assert all(f'name="{name}"' in source for name in names)
    assert form["http_options"]["host"] == "127.0.0.1"


def test_the_lock_file_has_hashes_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([a-z0-9._-]+)==\S+", text, re.M)
    assert len(pins) > 80
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= len(pins)
    assert "://" not in text
    assert not re.search(r"^--(index|extra|find)", text, re.M)


def test_every_dependency_is_locked_and_has_a_reason() -> None:
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    names = [re.split(r"[\[<>=!~ ]", line)[0] for line in wanted]
    lock = (ROOT / "requirements.lock").read_text()
    page = (ROOT / "docs" / "dependencies.md").read_text()
    told = re.findall(r"^\| `([^`]+)` \| .+ \|$", page, re.M)
    assert [name for name in names if not re.search(rf"^{re.escape(name)}==", lock, re.M)] == []
    assert sorted(told) == sorted(names), "docs/dependencies.md and pyproject.toml differ"


def test_make_help_lists_the_targets_that_people_expect() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["help", *TARGETS[:-1]]


def test_setup_has_nothing_to_do_a_second_time() -> None:
    """It must not need the network: the index is set to an address where nobody listens."""
    stamp = ROOT / ".venv" / ".setup-stamp"
    if not stamp.exists():
        pytest.skip("the environment was not made by make setup (no stamp)")
    command = ["sh", ".ci/setup"]
    environment = {"PATH": "/usr/bin:/bin", "UV_INDEX_URL": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == [], f"{page.name} links to what is not there"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    named = re.findall(
        r"`((?:billing|storage|actors|pipelines|deployments|cluster|tests|docs|examples|\.ci)/[\w./-]+)`", text
    )
    gone = [name for name in named if not (ROOT / name).exists()]
    assert gone == [], f"{page.name} names what is not there"


def test_the_licence_is_the_official_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text[:200]
    assert "END OF TERMS AND CONDITIONS" in text
    assert "CC BY 4.0" in (ROOT / "README.md").read_text()
