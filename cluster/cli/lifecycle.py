"""Start, stop and state of the platform of one data folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
import typer

from cluster.cli import context

DETACH_S = 180.0
DOWN_S = 60.0


def up(load_demo: bool, detach: bool) -> None:
    settings = context.settings()
    if load_demo:
        settings = settings.model_copy(update={"demo": True})
    if detach:
        _detach(settings)
        return
    with context.problems():
        from cluster.up import Platform

        platform = Platform(settings, _say)
        # Until everything is started a signal ends the start; afterwards `run` takes it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupted)
        try:
            platform.start()
            _say("")
            _say(f"  open      {settings.url}")
            _say(f"  API       {settings.url}/openapi.json   key: {settings.admin_key_file}")
            if settings.demo:
                from cluster.demo import PASSWORD_FILE
                from cluster.up import SIGN_IN

                _say(f"  sign in   {SIGN_IN}   password: {settings.data_dir / PASSWORD_FILE} (printed when loaded)")
            _say("  stop      Ctrl-C")
            _say("")
            code = platform.run()
        except KeyboardInterrupt:
            code = 130
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
            _say("stopping")
            platform.stop()
            _say("stopped; the data stays")
    raise typer.Exit(code)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _say(words: str) -> None:
    print(words, flush=True)  # noqa: T201 - the terminal is this command's output


def _detach(settings: Any) -> None:
    from cluster.instance import running

    if running(settings.data_dir):
        context.fail(f"a platform runs on {settings.data_dir}", context.NO, "see: cloudbilling status")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = settings.data_dir / "up.log"
    arguments = [sys.executable, "-m", "cluster.cli", "up", *(["--demo"] if settings.demo else [])]
    with log.open("ab") as out:
        child = subprocess.Popen(arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + DETACH_S
    while time.monotonic() < end:
        if child.poll() is not None:
            context.fail(f"it ended while starting; see {log}", context.NO, *log.read_text().splitlines()[-3:])
        state = _state(settings)
        if state.get("ready") and state.get("pid") == child.pid:
            _say(f"running at {settings.url} (process {child.pid}); stop it with: cloudbilling down")
            return
        time.sleep(0.5)
    context.fail(f"it is not ready after {DETACH_S:.0f} s; see {log}", context.UNREACHABLE)


def down(as_json: bool) -> None:
    from cluster.instance import read_status, running

    settings = context.settings()
    pid = read_status(settings.data_dir).get("pid")
    if not running(settings.data_dir) or not pid:
        context.show({"stopped": False, "reason": "not running"}, as_json, lambda _: _say("it was not running"))
        return
    with suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGTERM)
    end = time.monotonic() + DOWN_S
    while running(settings.data_dir):
        if time.monotonic() > end:
            context.fail(f"process {pid} does not stop after {DOWN_S:.0f} s", context.NO)
        time.sleep(0.2)
    context.show({"stopped": True}, as_json, lambda _: _say("stopped; the data stays"))


def status(as_json: bool) -> None:
    settings = context.settings()
    state = _state(settings)
    context.show(state, as_json, _print_status)
    if not state["running"]:
        raise typer.Exit(context.UNREACHABLE)
    if not state["ready"]:
        raise typer.Exit(context.NO)


def _state(settings: Any) -> dict[str, Any]:
    """What the platform says of itself, checked against what is true now."""
    from cluster.instance import read_status, running

    state: dict[str, Any] = {"ready": False, "demo": "none", **read_status(settings.data_dir)}
    alive = running(settings.data_dir)
    state = {"running": alive, **state, "data_dir": str(settings.data_dir)}
    if not alive:
        return {**state, "ready": False, "state": "stopped"}
    if state["ready"]:
        import httpx

        try:
            answer = httpx.get(f"{state['url']}/v1/health/ready", trust_env=False, timeout=10.0)
            state["ready"] = answer.status_code == 200
            state["checks"] = answer.json().get("checks", {})
        except (httpx.TransportError, ValueError) as error:
            state["ready"], state["checks"] = False, {"http": str(error)}
    process = int(state.get("pid") or 0)
    with suppress(psutil.NoSuchProcess):
        state["up_s"] = round(time.time() - psutil.Process(process).create_time(), 1)
    return state


def _print_status(state: dict[str, Any]) -> None:
    if not state["running"]:
        _say(f"stopped ({state['data_dir']})")
        _say("start it with: cloudbilling up")
        return
    _say(f"{'ready' if state['ready'] else state['state']} at {state.get('url')}, process {state.get('pid')}")
    if state.get("direct_url"):
        _say(f"  without the proxy: {state['direct_url']}")
    for name, word in (state.get("checks") or {}).items():
        _say(f"  {name}: {word}")
    _say(f"  demo: {state['demo']}")
    if state["demo"] == "loading" and state.get("demo_progress"):
        one = state["demo_progress"]
        _say(f"    {one['what']}: {one['done']} of {one['total'] or '?'}")


def doctor(as_json: bool) -> None:
    from cluster.doctor import doctor as examine

    findings = examine(context.settings())
    context.show(findings, as_json, _print_findings)
    if any(finding["state"] == "missing" for finding in findings):
        raise typer.Exit(context.NO)


def _print_findings(findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        _say(f"{finding['state']:8} {finding['what']}")
        if finding.get("help"):
            _say(f"         {finding['help']}")
