"""Reset to Default: the baseline, its plan, and the way back to it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from service.client import NoAnswer, RemoteError
from service.portal import plan as plans
from service.portal.archives import EVIDENCE
from service.portal.opening import given_secrets
from service.portal.plan import running
from service.portal.portal import Portal
from service.portal.translation import N_


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""
    reset = Reset(portal)
    return [
        web.get("/reset", reset.show),
        web.post("/reset/baseline", reset.take),
        web.get("/reset/plan", reset.plan),
        web.post("/reset/plan", reset.plan),
        web.post("/reset/start", reset.start),
    ]


class Reset:
    """The pages of the baseline."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def show(self, request: web.Request, *, wrong: str = "") -> web.StreamResponse:
        """Show the baseline, or how to take one."""
        portal = self._portal
        info = await portal.call(request, "system.info")
        baseline, problem = None, None
        if info["targets"]:
            try:
                baseline = await portal.call(request, "baseline.get")
            except (RemoteError, NoAnswer) as error:
                problem = error
        return portal.render(
            request,
            "reset.html",
            status=422 if wrong else 200,
            baseline=baseline,
            problem=problem,
            wrong=wrong,
            targets=info["targets"],
            pending=info["restore"],
            running=running(info),
            host=info["host"],
            evidence=EVIDENCE,
        )

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Queue the taking of a baseline; in place of another one only when that is said."""
        portal = self._portal
        form = await portal.form(request)
        if "replaces" in form and "sure" not in form:
            return await self.show(request, wrong=portal.text(request, N_("Nothing was done: tick the box first.")))
        return await portal.begin(request, "baseline.take", replace="replaces" in form)

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """Show what a reset would do."""
        asked = plans.Asked()
        if request.method == "POST":
            asked.secrets = given_secrets(await self._portal.form(request))
        return await self._shown(request, await self._planned(request, asked), asked)

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Begin, when the plan is still the one that was looked at and the server's name was typed."""
        portal = self._portal
        asked = await plans.Asked.of(request, portal)
        found = await self._planned(request, asked)
        if wrong := await plans.refused(portal, request, found["plan"], asked):
            return await portal.begun(request) or await self._shown(request, found, asked, wrong=wrong)
        return await portal.begin(
            request,
            "reset.start",
            remove_new_databases=await self._removes_new(request),
            allow=asked.allow,
            token=asked.token,
            **asked.secrets,
        )

    async def _planned(self, request: web.Request, asked: plans.Asked) -> dict[str, Any]:
        found: dict[str, Any] = await self._portal.call(
            request, "reset.plan", remove_new_databases=await self._removes_new(request), **asked.secrets
        )
        return found

    @staticmethod
    async def _removes_new(request: web.Request) -> bool:
        given = await request.post() if request.method == "POST" else request.query
        return given.get("remove_new") == "1"

    async def _shown(
        self, request: web.Request, found: dict[str, Any], asked: plans.Asked, *, wrong: str = ""
    ) -> web.StreamResponse:
        remove_new = await self._removes_new(request)
        return await plans.shown(
            self._portal,
            request,
            "reset_plan.html",
            found["plan"],
            asked=asked,
            wrong=wrong,
            again={"remove_new": 1 if remove_new else None},
            baseline=found["baseline"],
            remove_new=remove_new,
        )
