"""Restore, as a path: choose an archive, look at the plan, confirm, watch, then commit or roll back."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from aiohttp import web

from service.client import RemoteError
from service.portal import plan as plans
from service.portal.archives import EVIDENCE, PAGE, chosen_target, listed, skipped
from service.portal.opening import given_secrets
from service.portal.plan import running
from service.portal.portal import Portal
from service.portal.translation import N_

ONLY: Final = {
    "": N_("Everything that is chosen below"),
    "config": N_("Only configuration (directories)"),
    "databases": N_("Only databases"),
    "roles": N_("Only the roles of PostgreSQL servers"),
}
MOST_NAMES: Final = 1000


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""
    restore, pending = Restore(portal), Pending(portal)
    return [
        web.get("/restore", restore.choose),
        web.get("/restore/pending", pending.show),
        web.post("/restore/commit", pending.commit),
        web.post("/restore/rollback", pending.rollback),
        web.get("/restore/{name}", restore.plan),
        web.post("/restore/{name}", restore.plan),
        web.post("/restore/{name}/start", restore.start),
        web.post("/restore/{name}/tables", restore.tables),
    ]


class Restore:
    """The path to the start of a restore."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def choose(self, request: web.Request) -> web.StreamResponse:
        """Show the archives to choose from."""
        portal = self._portal
        info = await portal.call(request, "system.info")
        target, skip = chosen_target(request, info["targets"]), skipped(request)
        page, problem = await listed(portal, request, target, skip=skip)
        last = (await portal.call(request, "job.list", kinds=["restore", "reset"], limit=1))["jobs"]
        return portal.render(
            request,
            "restore.html",
            failed=next((job for job in last if job["state"] == "failed"), None),
            targets=info["targets"],
            target=target,
            page=page,
            problem=problem,
            skip=skip,
            size=PAGE,
            pending=info["restore"],
            running=running(info),
            evidence=EVIDENCE,
        )

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """Show what a restore would do. What opens the archive comes in a form, never in the address."""
        asked = plans.Asked()
        if request.method == "POST":
            asked.secrets = given_secrets(await self._portal.form(request))
        part = await self._part(request)
        wrong = ""
        try:
            plan = await self._planned(request, part, asked.secrets)
        except RemoteError as error:
            everything = {"sources": [], "databases": [], "only": None, "target": part["target"]}
            if not error.code.startswith("CONFIG") or part == everything:
                raise
            part, wrong = everything, f"{error}. {error.hint}"  # what was chosen does not go together
            plan = await self._planned(request, part, asked.secrets)
        return await self._shown(request, plan, part, asked, wrong=wrong)

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Begin, when the plan is still the one that was looked at and the server's name was typed."""
        portal = self._portal
        asked, part = await plans.Asked.of(request, portal), await self._part(request)
        plan = await self._planned(request, part, asked.secrets)
        if wrong := await plans.refused(portal, request, plan, asked):
            return await portal.begun(request) or await self._shown(request, plan, part, asked, wrong=wrong)
        return await portal.begin(
            request,
            "restore.start",
            archive=request.match_info["name"],
            allow=asked.allow,
            token=asked.token,
            **part,
            **asked.secrets,
        )

    async def tables(self, request: web.Request) -> web.StreamResponse:
        """Queue a restore of tables into a new database."""
        portal, form = self._portal, await self._portal.form(request)
        return await portal.begin(
            request,
            "restore.tables",
            archive=request.match_info["name"],
            target=form.get("target"),
            database=form.get("database", ""),
            tables=form.get("tables", "").replace(",", " ").split()[:MOST_NAMES],
            into=form.get("into", "").strip(),
            **given_secrets(form),
        )

    async def _planned(self, request: web.Request, part: dict[str, Any], secrets: dict[str, Any]) -> plans.Plan:
        found: plans.Plan = await self._portal.call(
            request, "restore.plan", archive=request.match_info["name"], **part, **secrets
        )
        return found

    async def _part(self, request: web.Request) -> dict[str, Any]:
        """Return what of the archive is wanted, as the socket's methods take it: of the form, or the address."""
        given = await request.post() if request.method == "POST" else request.query
        only = str(given.get("only", ""))
        part: dict[str, Any] = {
            name: [str(each) for each in given.getall(name, [])][:MOST_NAMES] for name in ("sources", "databases")
        }
        told = given.get("target")
        return part | {"only": only if only and only in ONLY else None, "target": str(told) if told else None}

    async def _shown(
        self, request: web.Request, plan: plans.Plan, part: dict[str, Any], asked: plans.Asked, *, wrong: str = ""
    ) -> web.StreamResponse:
        portal, name = self._portal, request.match_info["name"]
        inspected = None
        with contextlib.suppress(RemoteError):  # the plan says why it cannot be opened
            inspected = await portal.call(request, "archive.inspect", archive=name, target=part["target"])
        return await plans.shown(
            portal,
            request,
            "restore_plan.html",
            plan,
            asked=asked,
            wrong=wrong,
            again={"target": part["target"], "only": part["only"]},
            name=name,
            part=part,
            sources=[] if inspected is None else inspected["sources"],
            only=ONLY,
        )


class Pending:
    """What waits for commit or rollback."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def show(self, request: web.Request, *, wrong: str = "") -> web.StreamResponse:
        """Show what to look at before one of the two."""
        portal = self._portal
        pending = await portal.call(request, "restore.pending")
        job = None
        if pending is not None:
            page = await portal.call(request, "job.list", kinds=["restore", "reset"], limit=20)
            done = (each for each in page["jobs"] if (each["result"] or {}).get("restore_id") == pending["id"])
            job = next(done, None)
        return portal.render(
            request, "restore_pending.html", status=422 if wrong else 200, pending=pending, job=job, wrong=wrong
        )

    async def commit(self, request: web.Request) -> web.StreamResponse:
        """Queue the removal of the state before."""
        return await self._settle(request, "restore.commit")

    async def rollback(self, request: web.Request) -> web.StreamResponse:
        """Queue the return to the state before."""
        return await self._settle(request, "restore.rollback")

    async def _settle(self, request: web.Request, method: str) -> web.StreamResponse:
        portal = self._portal
        form = await portal.form(request)
        pending = await portal.call(request, "restore.pending")
        if "sure" not in form:
            return await self.show(request, wrong=portal.text(request, N_("Nothing was done: tick the box first.")))
        if pending is None or pending["id"] != form.get("id"):
            wrong = N_("Nothing was done: the restore that you looked at does not wait any more.")
            return await portal.begun(request) or await self.show(request, wrong=portal.text(request, wrong))
        return await portal.begin(request, method)
