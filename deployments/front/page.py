"""What every page has: who is signed in, language, words, number formats, security headers, errors as pages.

Owns the frame and the way a page is rendered. What stands on a page is the business of the modules beside it. Pages
are whole without JavaScript; htmx asks for the same URLs and takes the fragment that it needs.
"""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from billing.errors import BillingError, InvalidInput, NotAllowed, NotFound
from billing.master import MasterData
from deployments.access import SESSION_COOKIE
from deployments.front.formats import Formats
from deployments.front.session import VISIT_COOKIE, SignedIn, form_token
from deployments.front.texts import LANGUAGES, Texts, accepted_language
from deployments.services import Services
from deployments.shard_figures import ask_shards
from pipelines.usage_queries import UsageQueries

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
LANGUAGE_COOKIE = "cloudbilling_language"
YEAR_S = 365 * 24 * 3600

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The archived PDF is shown in a frame of ours and nowhere else; the document itself may load nothing.
DOCUMENT_POLICY = "default-src 'none'; object-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'self'"
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "Cache-Control": "no-store",
}

log = logging.getLogger("cloudbilling.http")


class SignInNeeded(Exception):
    """Nobody is signed in: the page asks for it and leads back."""


@dataclass(frozen=True)
class Area:
    """One entry of the navigation. `scope` is what a user needs to see it."""

    key: str
    path: str
    scope: str = ""


@dataclass(frozen=True)
class Module:
    key: str
    areas: tuple[Area, ...]


MODULES = (
    Module(
        "contracts",
        (
            Area("customers", "/customers", "contracts:read"),
            Area("subscriptions", "/subscriptions", "contracts:read"),
        ),
    ),
    Module(
        "prices",
        (
            Area("meters", "/meters", "catalog:read"),
            Area("plans", "/plans", "catalog:read"),
            Area("simulations", "/simulations", "billing:read"),
        ),
    ),
    Module(
        "documents",
        (
            Area("bill_runs", "/bill-runs", "billing:read"),
            Area("invoices", "/invoices", "billing:read"),
            Area("layouts", "/layouts", "billing:read"),
            Area("archive", "/archive", "archive:read"),
        ),
    ),
    Module(
        "statistics",
        (
            Area("revenue", "/", "billing:read"),
            Area("usage", "/statistics/usage", "usage:read"),
            Area("completeness", "/statistics/completeness", "usage:read"),
        ),
    ),
)
APART = (Area("operations", "/operations", "access:read"), Area("settings", "/settings", "access:read"))


def path_of(*parts: object) -> str:
    """A path of ours from its parts; codes may hold any character, a slash too."""
    return "/" + "/".join(quote(str(part), safe="") for part in parts)


@dataclass(frozen=True)
class Visit:
    """One request of one person: what it asks for, who asks, in which language."""

    request: Request
    texts: Texts
    formats: Formats
    now: datetime
    signed_in: SignedIn | None = None
    visit_token: str = ""

    @property
    def user(self) -> SignedIn:
        assert self.signed_in is not None, "the route asks for a signed-in user"
        return self.signed_in

    @property
    def tenant_id(self) -> str:
        return self.user.tenant_id

    @property
    def fragment(self) -> bool:
        """Whether htmx asks for a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    @cached_property
    def form_token(self) -> str:
        return form_token(self.request.cookies.get(SESSION_COOKIE) or self.visit_token)

    def may(self, scope: str) -> bool:
        return self.signed_in is not None and self.signed_in.may(scope)

    def need(self, scope: str) -> None:
        if not self.may(scope):
            raise NotAllowed(self.texts("error.scope", scope=scope))

    def link(self, **changes: object) -> str:
        """The address of this page with some parameters changed; None takes one out. Changing anything but the page
        starts at the first page again."""
        query = {key: value for key, value in self.request.query_params.items() if key not in ("lang", "format")}
        if "after" not in changes:
            query.pop("after", None)
        for key, value in changes.items():
            if value is None:
                query.pop(key, None)
            else:
                query[key] = str(value)
        return self.request.url.path + (f"?{urlencode(query)}" if query else "")


class Front:
    """Renders pages for one set of services. One per process."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.usage = UsageQueries(services.log, services.database, ask_shards(services.router))
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals.update(
            {"modules": MODULES, "apart": APART, "path_of": path_of, "asset": asset, "languages": LANGUAGES}
        )

    # -- a visit ---------------------------------------------------------------------------------------------------
    def visit(self, request: Request, signed_in: SignedIn | None = None) -> Visit:
        language = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE) or ""
        if language not in LANGUAGES:
            language = accepted_language(request.headers.get("accept-language", ""))
        texts = Texts(language)
        timezone = signed_in.timezone if signed_in else "UTC"
        token = request.cookies.get(VISIT_COOKIE) or secrets.token_urlsafe(24)
        return Visit(request, texts, Formats(texts, timezone), self.services.clock(), signed_in, token)

    def anyone(self, request: Request) -> Visit:
        return self.visit(request, SignedIn.find(self.services, request.cookies.get(SESSION_COOKIE)))

    def signed_in(self, request: Request) -> Visit:
        """The dependency of every page but sign-in."""
        found = SignedIn.find(self.services, request.cookies.get(SESSION_COOKIE))
        if found is None:
            raise SignInNeeded
        return self.visit(request, found)

    def master(self, visit: Visit) -> MasterData:
        """The tenant's newest master data; its values never change, so pages read it without a lock."""
        return self.services.masters.newest(visit.tenant_id)[1]

    def check_form(self, visit: Visit, token: str) -> None:
        """A form counts only if this page made it: its token fits the cookie (and browsers name their own origin)."""
        site = visit.request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") or not hmac.compare_digest(token.encode(), visit.form_token.encode()):
            raise NotAllowed(visit.texts("error.form"))

    # -- answers ---------------------------------------------------------------------------------------------------
    def page(self, visit: Visit, template: str, *, status: int = 200, area: str = "", **view: Any) -> HTMLResponse:
        """The template with the frame around it."""
        language = visit.texts.language
        body = self._environment.get_template(template).render(
            t=visit.texts, f=visit.formats, visit=visit, area=area, request=visit.request, now=visit.now, **view
        )
        response = HTMLResponse(body, status_code=status, headers=SECURITY_HEADERS)
        response.headers["Content-Language"] = language
        response.headers["Vary"] = "HX-Request, Accept-Language, Cookie"
        if visit.request.query_params.get("lang") in LANGUAGES:
            self.set_cookie(visit.request, response, LANGUAGE_COOKIE, language, YEAR_S)
        if visit.signed_in is None:
            self.set_cookie(visit.request, response, VISIT_COOKIE, visit.visit_token, None)
        return response

    def go(self, visit: Visit, path: str) -> Response:
        """After something was done: the page that shows it."""
        return RedirectResponse(path, status_code=303, headers=SECURITY_HEADERS)

    def set_cookie(self, request: Request, response: Response, name: str, value: str, age_s: int | None) -> None:
        # TLS ends at the operator's proxy, which says so. Who forges the header only harms his own cookie.
        secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())
        response.set_cookie(name, value, max_age=age_s, httponly=True, samesite="lax", secure=secure)

    def error_page(self, request: Request, status: int, title: str, detail: str) -> HTMLResponse:
        try:
            visit = self.anyone(request)
        except BillingError:  # the database is away: the page that says so needs nobody signed in
            visit = self.visit(request)
        return self.page(visit, "frame/error.html", status=status, title=title, detail=detail)

    def route_class(front) -> type[APIRoute]:
        """Routes whose errors become pages in the reader's language."""

        class PageRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def handler(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except SignInNeeded:
                        return front.to_sign_in(request)
                    except BillingError as error:
                        if error.status >= 500:
                            log.error("page %s failed: %s: %s", request.url.path, error.code, error.detail)
                        texts = front.visit(request).texts
                        return front.error_page(request, error.status, texts.word("error", error.code), error.detail)
                    except RequestValidationError as error:
                        texts = front.visit(request).texts
                        first = error.errors()[0]
                        detail = texts("error.parameter", name=str(first["loc"][-1]))
                        return front.error_page(request, 422, texts.word("error", "invalid_input"), detail)
                    except HTTPException as error:
                        texts = front.visit(request).texts
                        return front.error_page(request, error.status_code, texts("error.other"), str(error.detail))
                    except Exception:
                        log.exception("page %s failed", request.url.path)
                        texts = front.visit(request).texts
                        return front.error_page(request, 500, texts("error.other"), texts("error.ours"))

                return handler

        return PageRoute

    def to_sign_in(self, request: Request) -> Response:
        """To the sign-in page and back again; htmx is told to load it as a whole page."""
        there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        target = "/sign-in" if there == "/" or request.method != "GET" else "/sign-in?" + urlencode({"next": there})
        if request.headers.get("hx-request") == "true":
            return Response(status_code=204, headers={**SECURITY_HEADERS, "HX-Redirect": target})
        return RedirectResponse(target, status_code=303, headers=SECURITY_HEADERS)


def own_path(text: str | None) -> str:
    """A path on this host to go to after signing in; anything else leads home (no open redirect)."""
    if not text or not text.startswith("/") or text.startswith("//") or "\\" in text or not text.isprintable():
        return "/"
    return text


def found(row: Mapping[str, Any] | None, what: str) -> Mapping[str, Any]:
    if row is None:
        raise NotFound(what)
    return row


def date_of(visit: Visit, name: str, text: str) -> datetime:
    """Midnight of a day that a form names, in the tenant's time zone."""
    try:
        day = datetime.strptime(text.strip(), "%Y-%m-%d")
    except ValueError as error:
        raise InvalidInput(visit.texts("error.date", name=name)) from error
    return day.replace(tzinfo=visit.formats.local(visit.now).tzinfo)


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# -- files that never change under their name ----------------------------------------------------------------------
def _htmx() -> Path:
    import django_htmx  # only its static folder is used; the package itself asks for Django when called

    return Path(django_htmx.__file__).parent / "static" / "django_htmx" / "htmx-2.min.js"


ASSETS: Mapping[str, tuple[Path, str]] = {
    "tokens.css": (STATIC / "tokens.css", "text/css; charset=utf-8"),
    "base.css": (STATIC / "base.css", "text/css; charset=utf-8"),
    "front.css": (STATIC / "front.css", "text/css; charset=utf-8"),
    "front.js": (STATIC / "front.js", "text/javascript; charset=utf-8"),
    "icon.svg": (STATIC / "icon.svg", "image/svg+xml"),
    "htmx.min.js": (_htmx(), "text/javascript; charset=utf-8"),
}
_HASHES = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, (path, _) in ASSETS.items()}


def asset(name: str) -> str:
    """The address of a static file with its hash, so that a browser may keep it for ever."""
    return f"/static/{name}?v={_HASHES[name]}"
