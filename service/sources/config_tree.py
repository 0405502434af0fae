"""The configuration tree: a directory with everything below it, as one stream `tree.tar` (see `tar_stream`).

BACKUP reads the live tree once (`tree_walk`); what is left out (`selection`) and what changed while it was read is in
the facts. RESTORE unpacks into work areas beside the live tree (`tree_extract`), then exchanges (`tree_swap` says
which names, `exchange` does it), and never moves what a backup leaves out on purpose.
"""

# Work by descriptor speaks os, not pathlib.
# ruff: noqa: PTH112, PTH114, PTH208

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from service.blocking import read_in_thread, run_in_thread
from service.config_sources import TreeSettings
from service.errors import CorruptArchive, Obstacle, SourceError, StageFailed, SwapFailed
from service.progress import Progress
from service.sources import exchange, tree_compare, work_area
from service.sources.attributes import group_here, group_name, user_here, user_name
from service.sources.base import (
    Compared,
    Json,
    PlanItem,
    Record,
    Restorer,
    Room,
    Snapshot,
    Source,
    SourcePlan,
    StoredSource,
    Stream,
    StreamReader,
)
from service.sources.directories import (
    OWN_PREFIX,
    decode_path,
    encode_path,
    mounts_below,
    opened,
    sync_file_system,
)
from service.sources.selection import LEFTOVER, Selection, paths_to_keep
from service.sources.tree_changes import changes
from service.sources.tree_extract import Place, TreeExtractor, Written
from service.sources.tree_swap import Area, Planner, Survey, choose_areas, may_write, survey
from service.sources.tree_unpack import unpack
from service.sources.tree_walk import TreeWalk
from service.terminal import counted, size

STREAM = "tree.tar"

_COUNTS = ("files", "directories", "symlinks", "hard_links", "bytes")


class TreeSource(Source):
    """Backs up one directory. `preserve` are files inside it that another source looks after."""

    type = "tree"

    def __init__(self, settings: TreeSettings, *, preserve: Sequence[Path] = ()) -> None:
        self.name = settings.name
        self._settings = settings
        self._preserve = tuple(preserve)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Check that the tree is there. There is no freezing it: changes while it is read are told in the facts."""
        yield await run_in_thread(_TreeSnapshot, self._settings, self._preserve)


class _TreeSnapshot:
    parallel = 1

    def __init__(self, settings: TreeSettings, preserve: Sequence[Path]) -> None:
        root = Path(os.path.realpath(settings.path))
        try:
            empty = not os.listdir(root)
        except OSError as exc:
            raise SourceError(
                f"The directory {settings.path} cannot be read: {exc.strerror}.",
                hint="Correct the source's path, or mount the volume that it lies on.",
            ) from exc
        if empty:
            raise SourceError(
                f"The directory {settings.path} is empty; that is no configuration worth keeping.",
                hint="Mount the volume that it lies on, or correct the source's path.",
            )
        self._settings = settings
        self._mounts = mounts_below(root)
        self._kept = paths_to_keep(root, preserve)
        self._walk = TreeWalk(root, Selection(settings.exclude, kept=self._kept, mounts=self._mounts))
        self._ended = False
        self.streams = [Stream(kind=STREAM, labels={"path": str(settings.path)}, read=self._read)]

    async def _read(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(read_in_thread(self._walk.pieces())) as pieces:
            async for piece in pieces:
                yield piece
        self._ended = True

    async def facts(self) -> dict[str, Json]:
        """Tell what the one reading found."""
        if not self._ended:
            raise SourceError(f"The directory {self._settings.path} was not read to its end.")
        found = self._walk.found
        owners = [[uid, gid, user_name(uid), group_name(gid)] for uid, gid in sorted(found.owners)]
        facts: dict[str, Json] = {count: getattr(found, count) for count in _COUNTS}
        return facts | {
            "path": str(self._settings.path),
            "root": found.root,
            "owners": owners,
            "xattrs": sorted(map(encode_path, found.xattrs)),
            "mounts": sorted(encode_path(path) for path in self._mounts if path),
            "exclude": list(self._settings.exclude),
            "preserved": sorted(map(encode_path, self._kept)),
            "excluded": found.excluded,
            "warnings": found.warnings,
        }


class TreeRestorer(Restorer):
    """Brings one directory back. `preserve` are files inside it that are not this source's to replace."""

    kinds = frozenset({STREAM})

    def __init__(self, settings: TreeSettings, *, preserve: Sequence[Path] = ()) -> None:
        self._settings = settings
        self._preserve = tuple(preserve)

    async def plan(self, stored: StoredSource, reader: StreamReader | None = None) -> SourcePlan:
        """Look at the live tree and its file system."""
        return await run_in_thread(self._plan, stored)

    def _plan(self, stored: StoredSource) -> SourcePlan:
        root, shown, facts = self._root, str(self._settings.path), stored.facts
        try:
            found = self._survey(root, facts)
        except OSError as exc:
            told = f"{shown} cannot be looked at: {exc.strerror or exc}."
            return SourcePlan([], [_obstacle("TREE_UNREADABLE", told, "Run as root.")])
        note = f"{counted(facts['files'], 'file')}, {size(facts['bytes'])}"
        if facts["path"] != shown:
            note += f"; was {facts['path']}"
        if found.mounted:
            note += "; name by name, since something is mounted there"
        items = [PlanItem(shown, "replace" if found.exists else "create", note)]
        reasons = {decode_path(e["path"]): str(e["reason"]) for e in facts["excluded"] if isinstance(e, dict)}
        kept = [(path, reasons.get(path, why)) for path, why in sorted(found.kept.items()) if why != LEFTOVER]
        items += [PlanItem(f"{shown}/{encode_path(path)}", "keep", why) for path, why in kept[:50]]
        if len(kept) > 50:
            items.append(PlanItem(f"{len(kept) - 50} more below {shown}", "keep", "left out of backups"))
        items += [
            PlanItem(f"owner {user or uid}:{group or gid}", "replace", "has another number on this system")
            for uid, gid, user, group in facts["owners"]
            if (user_here(uid, user), group_here(gid, group)) != (uid, gid)
        ]
        return SourcePlan(items, _obstacles(root, facts, found))

    async def differences(
        self, stored: StoredSource, reader: StreamReader, *, since: datetime, ignore: Sequence[str]
    ) -> list[str]:
        """See `Restorer.differences`: numbers and times of files."""
        root, kept = self._root, paths_to_keep(self._root, self._preserve)
        patterns = [*self._settings.exclude, *stored.facts["exclude"]]
        rules = Selection(patterns, kept=kept, mounts=mounts_below(root))
        try:
            return await run_in_thread(changes, root, rules, ignore, stored.facts, since)
        except OSError as exc:
            raise SourceError(f"{root} cannot be looked at: {exc.strerror or exc}.") from exc

    async def stage(
        self,
        stored: StoredSource,
        reader: StreamReader,
        record: Record,
        save: Callable[[], Awaitable[None]],
        progress: Progress,
    ) -> None:
        """Unpack beside the live tree, compare with the manifest, write through to the disk."""
        streams = [stream for stream in stored.streams if stream.kind == STREAM]
        if len(streams) != 1:
            raise CorruptArchive(f"The archive's source {stored.name} has no single stream of the kind {STREAM}.")
        root = self._root
        try:
            found = await run_in_thread(self._survey, root, stored.facts)
        except OSError as exc:
            raise StageFailed(f"{root} cannot be looked at: {exc.strerror or exc}.") from exc
        area_name = f"{OWN_PREFIX}{record.setdefault('id', secrets.token_hex(8))}-{self._settings.name}"
        areas = choose_areas(root, found, area_name)
        record["root"] = encode_path(str(root))
        record["rules"] = {key: stored.facts[key] for key in ("exclude", "preserved")}
        record["rules"]["excluded"] = [entry["path"] for entry in stored.facts["excluded"]]
        for area in areas:
            if area.path.is_symlink() or area.path.exists():
                raise StageFailed(f"There is a work area {area.path} of this name already.")
        record["areas"] = [[encode_path(area.at), encode_path(str(area.path)), area.name] for area in areas]
        await save()
        said: list[str] = []
        with ExitStack() as stack:
            extractor = await run_in_thread(_begin, areas, stack, said.append)
            await unpack(reader.read(streams[0]), extractor, progress)
            written = await run_in_thread(_finish, extractor, areas)
        for sentence in dict.fromkeys(said):
            progress.say(sentence)
        _compare(written, stored.facts)
        Planner(root, areas, found).check()

    async def room(self, stored: StoredSource) -> Room:
        """Look at what the files take, in blocks."""
        above, _ = exchange.missing_parents(self._root)
        return Room({above: _needed(stored.facts)})

    async def compare(self, stored: StoredSource, reader: StreamReader, record: Record, progress: Progress) -> Compared:
        """Read the copy back."""
        [area] = _areas(record)  # nothing of a tree that is not there has to stay
        progress.say(f"Comparing the restored copy of {self._settings.path} with the archive")
        with progress.part("trees compared", quiet=True):
            return await tree_compare.compare(area.path / area.name, stored.streams[0], reader, stored.facts)

    async def swap(self, record: Record, save: Callable[[], Awaitable[None]]) -> None:
        """Exchange the copy and the live tree."""
        root, areas = Path(decode_path(record["root"])), _areas(record)
        try:
            planner = Planner(root, areas, await run_in_thread(self._survey, root, record["rules"]))
            while True:
                plan = await run_in_thread(planner.plan)
                record["plan"] = plan.to_json()
                await save()
                try:
                    await run_in_thread(exchange.carry_out, plan)
                    break
                except exchange.CannotMove as exc:
                    await run_in_thread(exchange.take_back, plan)
                    if exc.path != str(root) and not _is_directory(exc.path):
                        raise
                    planner.pass_through(exc.path[len(str(root)) + 1 :])
        except StageFailed as exc:
            raise SwapFailed(str(exc), hint=exc.hint) from exc
        except OSError as exc:
            raise SwapFailed(
                f"{root} and its restored copy could not be exchanged: {exc.strerror or exc} ({exc.filename or root})."
            ) from exc
        record["swapped"] = True
        await save()

    async def undo(self, record: Record) -> None:
        """Bring the old tree back."""
        await run_in_thread(work_area.undo, _plan(record), [area.path for area in _areas(record)])

    async def commit(self, record: Record) -> None:
        """Let the old tree go."""
        plan = _plan(record) if record.get("swapped") else None
        await run_in_thread(work_area.commit, plan, [area.path for area in _areas(record)])

    @property
    def _root(self) -> Path:
        return Path(os.path.realpath(self._settings.path))

    def _survey(self, root: Path, facts: Mapping[str, Any]) -> Survey:
        # What the archive left out and what a backup would leave out today: both must stay.
        then = [*facts["preserved"], *(e["path"] if isinstance(e, dict) else e for e in facts["excluded"])]
        kept = paths_to_keep(root, self._preserve) | set(map(decode_path, then))
        patterns = list(dict.fromkeys([*self._settings.exclude, *facts["exclude"]]))
        return survey(root, lambda: Selection(patterns, kept=kept, mounts=mounts_below(root)))


def _plan(record: Record) -> exchange.Plan | None:
    return exchange.Plan.from_json(record["plan"]) if "plan" in record else None


def _areas(record: Record) -> list[Area]:
    return [Area(decode_path(at), Path(decode_path(path)), name) for at, path, name in record.get("areas", [])]


def _begin(areas: Sequence[Area], stack: ExitStack, say: Callable[[str], None]) -> TreeExtractor:
    places = {}
    try:
        for area in areas:
            work_area.make_area(area.path)
            places[area.at] = Place(stack.enter_context(opened(area.path)), area.name)
    except OSError as exc:
        raise StageFailed(
            f"The work area {exc.filename or areas[0].path} could not be made: {exc.strerror or exc}.",
            hint="The restore needs to write beside the live tree, on the same file system.",
        ) from exc
    return stack.enter_context(TreeExtractor(places, say=say))


def _finish(extractor: TreeExtractor, areas: Sequence[Area]) -> Written:
    written = extractor.finish()
    try:
        for area in areas:
            with opened(area.path) as fd:
                sync_file_system(fd)
    except OSError as exc:
        raise StageFailed(f"The copy of the tree could not be written to the disk: {exc.strerror or exc}.") from exc
    return written


def _compare(written: Written, facts: Mapping[str, Any]) -> None:
    for count in _COUNTS:
        if getattr(written, count) != facts[count]:
            raise StageFailed(
                f"The restored copy has {getattr(written, count)} {count.replace('_', ' ')} where the archive's "
                f"manifest says {facts[count]}."
            )


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _obstacles(root: Path, facts: Mapping[str, Any], found: Survey) -> list[Obstacle]:
    obstacles = []
    places = {area.path.parent for area in choose_areas(root, found, OWN_PREFIX)}
    for place in sorted(places):
        usage = os.statvfs(place)
        if usage.f_flag & os.ST_RDONLY or not may_write(place):
            obstacles.append(_obstacle("TREE_NOT_WRITABLE", f"{place} cannot be written to.", "Make it writable."))
    above = choose_areas(root, found, OWN_PREFIX)[0].path.parent
    usage = os.statvfs(above)
    needed = _needed(facts)
    if usage.f_bavail * usage.f_frsize < needed or 0 < usage.f_favail < facts["files"] + facts["directories"]:
        obstacles.append(_obstacle("NO_SPACE", f"The copy needs {size(needed)} at {above}.", "Make room there."))
    if os.geteuid() != 0:
        groups = {os.getegid(), *os.getgroups()}
        here = [(user_here(uid, user), group_here(gid, group)) for uid, gid, user, group in facts["owners"]]
        if any(uid != os.geteuid() or gid not in groups for uid, gid in here):
            obstacles.append(
                _obstacle("OWNERS_NEED_ROOT", "Files of other owners can only be restored by root.", "Run as root.")
            )
        if any(name.startswith(("security.capability", "trusted.")) for name in facts["xattrs"]):
            obstacles.append(
                _obstacle("ATTRIBUTES_NEED_ROOT", "Some extended attributes can only be set by root.", "Run as root.")
            )
    for path in found.mounted_files:
        obstacles.append(
            _obstacle(
                "MOUNTED_FILE",
                f"{root}/{encode_path(path)} is a single mounted file and cannot be replaced.",
                "Unmount it, or name it in the source's exclude list.",
            )
        )
    return obstacles


def _needed(facts: Mapping[str, Any]) -> int:
    needed: int = facts["bytes"] + 4096 * (facts["files"] + facts["directories"])
    return needed


def _obstacle(code: str, message: str, remedy: str) -> Obstacle:
    return Obstacle(code, message, remedy)
