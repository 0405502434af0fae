"""The page of a plan, of a restore or a reset: what is replaced, what is in the way, and the form that begins it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from service.portal.opening import asks_for, given_secrets
from service.portal.portal import Portal
from service.portal.translation import N_

Plan = dict[str, Any]

LIVE: Final = frozenset({"restore", "reset", "commit", "rollback"})
"""Kinds of jobs that change what is live, or settle that."""


def running(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the job at work that changes what is live, of what `system.info` tells."""
    active: dict[str, Any] | None = info["active"]
    return active if active is not None and active["kind"] in LIVE else None


@dataclass(slots=True)
class Asked:
    """What the plan's form has told. Secrets are held for this one request."""

    secrets: dict[str, Any] = field(default_factory=dict, repr=False)
    allow: list[str] = field(default_factory=list)
    token: str = ""
    typed: str = ""

    @classmethod
    async def of(cls, request: web.Request, portal: Portal) -> Asked:
        """Read a plan's form."""
        form = await portal.form(request)
        return cls(
            secrets=given_secrets(form),
            allow=[str(code) for code in (await request.post()).getall("allow", [])],
            token=form.get("token", ""),
            typed=form.get("confirm", "").strip(),
        )


async def shown(
    portal: Portal,
    request: web.Request,
    template: str,
    plan: Mapping[str, Any],
    *,
    asked: Asked,
    wrong: str,
    again: Mapping[str, object],
    **values: Any,
) -> web.Response:
    """Return the page of a plan; `wrong` says what the form before lacked, `again` is the query to look anew."""
    info = await portal.call(request, "system.info")
    allowed = set(plan["can_be_allowed"])
    return portal.render(
        request,
        template,
        status=422 if wrong else 200,
        plan=plan,
        blocking=[_for_this_page(portal, request, each) for each in plan["obstacles"] if each["code"] not in allowed],
        allowable=[obstacle for obstacle in plan["obstacles"] if obstacle["code"] in allowed],
        asks=asks_for(plan["obstacles"], asked.secrets),
        opened=bool(plan["token"]),
        allow=asked.allow,
        wrong=wrong,
        again=portal.url(request.path.removeprefix(portal.settings.base_path).removesuffix("/start"), **again),
        host=info["host"],
        target=next(iter(info["targets"]), ""),
        **values,
    )


def _for_this_page(portal: Portal, request: web.Request, obstacle: dict[str, Any]) -> dict[str, Any]:
    """Return an obstacle with what to do about it here, where the service speaks of the command line."""
    if obstacle["code"] == "PIN_REQUIRED":
        return obstacle | {"remedy": portal.text(request, N_("Type it below."))}
    return obstacle


async def refused(portal: Portal, request: web.Request, plan: Mapping[str, Any], asked: Asked) -> str:
    """Say why what the form asks for is not begun; empty when nothing is wrong.

    The service looks at everything again when it begins; this tells a person at once, on the page.
    """
    host = (await portal.call(request, "system.info"))["host"]
    codes = {obstacle["code"] for obstacle in plan["obstacles"]}
    allowed = set(plan["can_be_allowed"])
    if not plan["token"]:
        return portal.text(request, N_("Nothing was begun: the archive does not open with what was given."))
    if asked.token != plan["token"]:
        return portal.text(
            request, N_("Nothing was begun: what would be found has changed since you looked. This is the plan now.")
        )
    if codes - allowed:
        return portal.text(request, N_("Nothing was begun: something is in the way that has to be removed first."))
    if codes & allowed - set(asked.allow):
        return portal.text(
            request, N_("Nothing was begun: tick the box of each obstacle that you go ahead in spite of.")
        )
    if asked.typed.casefold() != host.casefold():
        return portal.text(request, N_("Nothing was begun: what was typed is not this server's name."))
    return ""
