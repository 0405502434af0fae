"""Archives: what is in the targets, and what can be done with one of them."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from service.client import NoAnswer, RemoteError
from service.portal.download import Downloads
from service.portal.opening import given_secrets
from service.portal.portal import Portal
from service.portal.translation import N_
from service.portal.trend import bars

PAGE: Final = 50
TREND_DAYS: Final = 90
MOST_SKIPPED: Final = 1_000_000
EVIDENCE: Final = {
    "restorable": N_("A drill has restored it and compared all that came out."),
    "verified": N_("Every byte was read back from the target and authenticated."),
    "written": N_("It is there whole, but nobody has read it back yet. Verify it."),
    "unknown": N_("It was found in the target; nobody has read it here. Verify it."),
    "damaged": N_("It was read, and is not what was sealed. Do not rely on it."),
}
"""What the evidence of an archive means, the best first."""
LAST_GOOD: Final = {
    "the newest archive that is known to be good": N_("It is the newest archive here that is known to be good."),
    "the only archive that a drill has restored": N_("It is the only archive here that a drill has restored."),
}
"""What the service says of an archive that is the last good one, in a sentence."""
FILTERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "": (N_("All"), {}),
    "proven": (N_("Proven"), {"evidence": ["verified", "restorable"]}),
    "unproven": (N_("Not proven"), {"evidence": ["unknown", "written"]}),
    "damaged": (N_("Damaged"), {"evidence": ["damaged"]}),
    "held": (N_("Held"), {"held": True}),
}


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""
    downloads = Downloads(portal)
    actions = Actions(portal)

    async def table(request: web.Request) -> web.StreamResponse:
        info = await portal.call(request, "system.info")
        targets: list[str] = info["targets"]
        target = chosen_target(request, targets)
        shown = request.query.get("show", "")
        shown = shown if shown in FILTERS else ""
        skip = skipped(request)
        page, problem = await listed(portal, request, target, skip=skip, trend_days=TREND_DAYS, **FILTERS[shown][1])
        return portal.render(
            request,
            "archives.html",
            targets=targets,
            target=target,
            page=page,
            problem=problem,
            skip=skip,
            size=PAGE,
            filters={name: told for name, (told, _) in FILTERS.items()},
            shown=shown,
            evidence=EVIDENCE,
            bars=bars(page["trend"], info["now"], TREND_DAYS) if page else [],
            trend_days=TREND_DAYS,
        )

    return [
        web.get("/archives", table),
        web.get("/archives/{name}", actions.page),
        web.get("/archives/{name}/download", downloads.answer),
        web.post("/archives/{name}/verify", actions.verify),
        web.post("/archives/{name}/hold", actions.hold),
        web.post("/archives/{name}/release", actions.release),
        web.post("/archives/{name}/copy", actions.copy),
        web.post("/archives/{name}/delete", actions.delete),
    ]


class Actions:
    """The page of one archive, and its forms."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def page(
        self, request: web.Request, *, status: int = 200, wrong: str = "", target: str | None = None
    ) -> web.StreamResponse:
        """Show an archive; `wrong` says what a form of it lacks."""
        portal, name = self._portal, request.match_info["name"]
        copies = (await portal.call(request, "archive.get", archive=name))["copies"]
        urls = [copy["target"] for copy in copies]
        there = [copy["target"] for copy in copies if copy["entry"] is not None]
        target = target if target in urls else request.query.get("target")
        if target not in urls:
            target = there[0] if there else urls[0]
        here = next(copy for copy in copies if copy["target"] == target)
        inspected, problem = None, None
        slots: list[dict[str, Any]] = []
        if here["entry"] is not None:
            try:
                inspected = await portal.call(request, "archive.inspect", archive=name, target=target)
                listed = (await portal.call(request, "key.list", archive=name, target=target))["archives"]
                slots = listed[0]["slots"] if listed else []
            except RemoteError as error:
                problem = error
        return portal.render(
            request,
            "archives_show.html",
            status=status,
            name=name,
            target=target,
            copies=copies,
            here=here,
            inspected=inspected,
            slots=slots,
            problem=problem,
            wrong=wrong,
            evidence=EVIDENCE,
            last_good=LAST_GOOD,
            lacking=[copy["target"] for copy in copies if copy["entry"] is None and not copy["problem"]],
        )

    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Queue the reading of every byte."""
        return await self._queue(request, "archive.verify", given_secrets(await self._portal.form(request)))

    async def hold(self, request: web.Request) -> web.StreamResponse:
        """Hold the archive, in every target that has it."""
        form = await self._portal.form(request)
        reason = form.get("reason", "").strip()
        return await self._done(request, "archive.hold", N_("The archive is held: nothing removes it."), reason=reason)

    async def release(self, request: web.Request) -> web.StreamResponse:
        """End the hold, in every target."""
        return await self._done(request, "archive.release", N_("The archive is not held any more."))

    async def copy(self, request: web.Request) -> web.StreamResponse:
        """Queue a copy to another target."""
        form = await self._portal.form(request)
        params = {"target": form.get("to", ""), "source": form.get("target")}
        return await self._queue(request, "archive.copy", params)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Queue the removal, once the archive's name was typed."""
        portal, name = self._portal, request.match_info["name"]
        form = await portal.form(request)
        if form.get("confirm", "").strip() != name:
            wrong = portal.text(request, N_("Nothing was removed: what was typed is not the archive's name."))
            return await self.page(request, status=422, wrong=wrong, target=form.get("target"))
        return await self._queue(request, "archive.delete", {"even_the_last": "even_the_last" in form})

    async def _queue(self, request: web.Request, method: str, params: dict[str, Any]) -> web.StreamResponse:
        form = await self._portal.form(request)
        wanted = {"target": form.get("target")} | params
        return await self._portal.begin(request, method, archive=request.match_info["name"], **wanted)

    async def _done(self, request: web.Request, method: str, notice: str, **params: str) -> web.StreamResponse:
        portal, name = self._portal, request.match_info["name"]
        form = await portal.form(request)
        try:
            await portal.call(request, method, archive=name, idempotency_key=form.get("idempotency_key"), **params)
        except RemoteError as error:
            return await self.page(request, status=409, wrong=f"{error} {error.hint}", target=form.get("target"))
        return portal.redirect(
            request, f"/archives/{name}", notice=portal.text(request, notice), target=form.get("target")
        )


def chosen_target(request: web.Request, targets: list[str]) -> str | None:
    """Return the target that a page is asked to show: one of those there are, else the first; None without any."""
    asked = request.query.get("target")
    return asked if asked in targets else next(iter(targets), None)


async def listed(
    portal: Portal, request: web.Request, target: str | None, **chosen: Any
) -> tuple[Any, RemoteError | NoAnswer | None]:
    """Return a page of `archive.list`, or why this target cannot be listed: another may be in reach."""
    if target is None:
        return None, None
    try:
        return await portal.call(request, "archive.list", target=target, limit=PAGE, **chosen), None
    except (RemoteError, NoAnswer) as problem:
        return None, problem


def skipped(request: web.Request) -> int:
    """Return how many archives the page leaves out before its first."""
    told = request.query.get("skip", "0")
    return min(int(told), MOST_SKIPPED) if told.isascii() and told.isdigit() and len(told) < 9 else 0
