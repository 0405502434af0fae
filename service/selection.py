"""Which part of an archive is wanted: sources by name, databases, or one kind of content. Pure.

A restore of a part is a restore like any other of fewer things: what was not chosen stays as it is. `of` narrows what
the manifest tells, so that nothing else is read, planned, made or exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from service.errors import ConfigError
from service.sources.base import StoredSource

Kind = Literal["config", "roles", "databases"]
"""`config`: directories. `roles`: the roles of PostgreSQL servers. `databases`: PostgreSQL databases, without the
server's roles, and SQLite files."""


class NotInArchive(ConfigError):
    """What was asked for is not in the archive; the hint says what is."""

    code = "CONFIG_SELECTION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is wanted. Nothing said is everything; what is said narrows: a database of these sources, of this kind."""

    sources: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    only: Kind | None = None
    exactly: bool = False
    """Whether databases that the archive does not have are to go, with the old state."""

    @classmethod
    def of_params(cls, params: Mapping[str, Any]) -> Self:
        """Read the members `sources`, `databases` and `only` of a request."""
        return cls(
            sources=tuple(params.get("sources") or ()),
            databases=tuple(params.get("databases") or ()),
            only=params.get("only"),
        )

    def as_params(self) -> dict[str, Any]:
        """Return the members of a request; none when everything is wanted."""
        told = {"sources": list(self.sources), "databases": list(self.databases), "only": self.only}
        return {name: value for name, value in told.items() if value}

    @property
    def everything(self) -> bool:
        """Tell whether nothing was said."""
        return not (self.sources or self.databases or self.only)

    def of(self, stored: Sequence[StoredSource]) -> list[StoredSource]:
        """Return what is wanted of an archive's sources, in the same order. Raises NotInArchive, ConfigError."""
        if self.everything:
            return [replace(source, exactly=self.exactly) for source in stored]
        if self.databases and self.only in ("config", "roles"):
            raise ConfigError(
                f"databases are named, but only {self.only} wanted", hint="Say one of the two, or restore twice."
            )
        _require("source", self.sources, [source.name for source in stored])
        named = [source for source in stored if not self.sources or source.name in self.sources]
        _require("database", self.databases, databases_of(named))
        found = [part for source in named if (part := self._part(source)) is not None]
        if not found:
            there = ", ".join(sorted(f"{source.name} ({source.type})" for source in named))
            raise NotInArchive(
                f"the archive has nothing of the kind {self.only} in what was chosen", hint=f"It has: {there}."
            )
        return found

    def _part(self, source: StoredSource) -> StoredSource | None:
        """Return what is wanted of one source; None when that is nothing."""
        if source.type != "postgresql":
            kind = "config" if source.type == "tree" else "databases"
            return source if not self.databases and self.only in (None, kind) else None
        if self.only == "config":
            return None
        if self.only == "roles":
            return _narrowed(source, ())
        if self.databases:
            wanted = [name for name in databases_of([source]) if name in self.databases]
            return _narrowed(source, wanted) if wanted else None
        if self.only == "databases":
            every = databases_of([source])
            return _narrowed(source, every) if every else None  # a part without databases is the roles
        return source


EVERYTHING = Selection()


def databases_of(stored: Iterable[StoredSource]) -> list[str]:
    """Return the names of all PostgreSQL databases in these sources."""
    return [database["name"] for source in stored for database in source.facts.get("databases", ())]


def _narrowed(source: StoredSource, databases: Sequence[str]) -> StoredSource:
    facts = {**source.facts, "databases": [each for each in source.facts["databases"] if each["name"] in databases]}
    labels = {None, *databases}
    streams = [stream for stream in source.streams if stream.labels.get("database") in labels]
    return replace(source, facts=facts, streams=tuple(streams), whole=False)


def _require(what: str, wanted: Iterable[str], there: Sequence[str]) -> None:
    if absent := sorted(set(wanted) - set(there)):
        has = f"It has: {', '.join(sorted(there))}." if there else f"It has no {what}."
        raise NotInArchive(f"the archive has no {what} {', '.join(absent)}", hint=has)


def cautions(whole: Sequence[StoredSource], wanted: Sequence[StoredSource], created: str) -> list[str]:
    """Return sentences on what does not fit together any more once `wanted` alone is as it was at `created`."""
    told = []
    parts = {source.name: source for source in wanted}
    left = [source.name for source in whole if source.name not in parts]
    for source in whole:
        part = parts.get(source.name)
        if part is None or source.type != "postgresql" or part.whole:
            continue
        names = databases_of([part])
        others = [name for name in databases_of([source]) if name not in names]
        if not names:
            told.append(
                f"Roles of {source.name} get the passwords and memberships of {created}; databases stay as they are."
            )
            continue
        told += _foreign(part)
        told.append("Roles that are there stay as they are; missing ones are made where these databases need them.")
        if others:
            told.append(f"In {source.name}, {_and(names)} will be of {created} beside {_and(others)} of now.")
    if left:
        chosen = _and([source.name for source in wanted])
        told.append(f"What is restored of {chosen} will be of {created} beside {_and(left)} of now.")
    return told


def _foreign(part: StoredSource) -> list[str]:
    return [
        f"Database {database['name']} has foreign tables: what they show comes from elsewhere, and is of now."
        for database in part.facts["databases"]
        if database.get("objects", {}).get("relation:f")
    ]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
