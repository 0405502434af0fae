"""What a random database has so far, the dice, and odd names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

T = TypeVar("T")

ODD_NAMES = (
    'quo"te', "it's", "sp ace", "UPPER Case", "a.b", "größe", "設備😀", "1st", "100%", "%s", "back\\slash", "new\nline",
    "tab\there", "$1", "-- no", "/* no", "*", "{}", "x" * 63, "é" * 40, "''", '""', ";", "$$", "E'\\n", "cr\r",
    "public",
    " ", "a,b", "(x)", "[y]", "\\.", "\\N", "@", "=", "odd_pg_",
)  # fmt: skip
KEYWORDS = (
    "select",
    "table",
    "user",
    "order",
    "check",
    "default",
    "null",
    "true",
    "group",
    "all",
    "end",
    "oid",
    "xmin2",
)
TEXTS = (
    "", " ", "it's", 'say "hi"', "a\nb\r\n\tc", "back\\slash \\' \\n", "größe", "設備 😀", "100% %s %1$s",
    "$$ $_$ $body$",
    "-- comment\n/* open", "; DROP TABLE x; --", "{a,b}", "(1,2)", "NULL", "\\N", "\\.", "x" * 300,
)  # fmt: skip

DBA, READER, OWNER, OTHER = 'dba "super"', "reader 100%", "Owner's", "other%role\\"
ROLES = (DBA, READER, OWNER, OTHER)
"""Roles of the server: a superuser, a member of pg_read_all_data, and two with nothing."""


def quoted(name: str) -> str:
    """Quote a name."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a string, whatever standard_conforming_strings says."""
    escaped = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{escaped}'" if "\\" in text else f"'{escaped}'"


@dataclass(frozen=True)
class Type:
    """A type of columns; `values` are expressions. `filled`: it takes no NULL."""

    sql: str
    values: tuple[str, ...]
    ordered: bool = False
    filled: bool = False
    text: bool = False


@dataclass(frozen=True)
class Column:
    """A column; its name is quoted."""

    name: str
    type: Type
    filled: bool = False
    computed: bool = False


@dataclass
class Table:
    """A table. Its rows have the keys 1 to `rows`; names are quoted."""

    name: str
    columns: list[Column]
    key: str
    rows: int
    relkind: str = "r"
    unique: bool = True
    """Whether the key alone is a primary key that others may refer to."""
    permanent: bool = True
    family: bool = False
    """Whether it shares its columns with others: a partition, a parent, a child, of a type."""


@dataclass
class World:
    """A database in the making: its statements, what they made, and how many of each kind."""

    encoding: str = "UTF8"
    dice: Random = field(default_factory=Random)
    statements: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    """To be run when all rows are there: what would act on them, or forbid them."""
    last: list[str] = field(default_factory=list)
    """To be run at the very end."""
    watchers: list[str] = field(default_factory=list)
    """To be run after that: they see every command."""
    settings: list[str] = field(default_factory=list)
    """Of the database itself, to be run from another one; {} stands for its name."""
    of_roles: list[str] = field(default_factory=list)
    """What roles are set to in the database, likewise."""
    kinds: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    schemas: list[str] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    """The types that have a default."""
    types: list[Type] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    views: list[tuple[str, list[str]]] = field(default_factory=list)
    """Views and materialized views that are filled, with their columns."""
    materialized: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    """Immutable functions of one bigint that return bigint."""
    trigger_functions: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    collations: list[str] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    extensions: set[str] = field(default_factory=set)
    objects: list[tuple[str, str]] = field(default_factory=list)
    """What COMMENT ON takes: the kind of thing, and which one."""
    subscriptions: list[str] = field(default_factory=list)

    def make(self, kind: str) -> None:
        """Make one of a kind."""
        self.kinds[kind] += 1
        KINDS[kind](self)

    def do(self, sql: str) -> None:
        """Add a statement."""
        self.statements.append(sql)

    def chance(self, share: float = 0.5) -> bool:
        """Throw a die."""
        return self.dice.random() < share

    def pick(self, things: Sequence[T]) -> T:
        """Take one."""
        return things[self.dice.randrange(len(things))]

    def some(self, things: Sequence[T], least: int = 1, most: int = 4) -> list[T]:
        """Take some, each once, in any order."""
        return self.dice.sample(list(things), min(len(things), self.dice.randint(least, most)))

    def encodes(self, text: str) -> bool:
        """Say whether the database's encoding has these characters."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        return True

    def new(self) -> str:
        """Return a new odd name, quoted."""
        while True:
            if self.chance(0.1):
                name = self.pick(KEYWORDS)
            else:
                number = f" {len(self.names)}"
                name = self.pick(ODD_NAMES)
                name = name.encode()[: 63 - len(number)].decode(errors="ignore") + number
                if self.chance(0.2):
                    name = number.strip() + name.removesuffix(number)
            if name not in self.names and self.encodes(name):
                self.names.add(name)
                return quoted(name)

    def text(self) -> str:
        """Return an odd text, as a literal."""
        while True:
            if self.encodes(found := self.pick(TEXTS)):
                return literal(found)

    def schema(self) -> str:
        """Return a schema, quoted."""
        if not self.schemas:
            self.make("schema")
        return self.pick(self.schemas)

    def placed(self) -> str:
        """Return a new name in some schema."""
        return f"{self.schema()}.{self.new()}"

    def role(self) -> str:
        """Return a role, quoted."""
        return quoted(self.pick(ROLES))

    def table(self, suits: Callable[[Table], bool] = lambda table: True) -> Table:
        """Return a table that suits."""
        while True:
            if found := [table for table in self.tables if suits(table)]:
                return self.pick(found)
            self.make("table")

    def function(self) -> str:
        """Return an immutable function of one bigint."""
        if not self.functions:
            self.make("function_of_number")
        return self.pick(self.functions)

    def trigger_function(self) -> str:
        """Return a function for triggers."""
        if not self.trigger_functions:
            self.make("trigger_function")
        return self.pick(self.trigger_functions)

    def note(self, kind: str, name: str) -> None:
        """Remember an object to comment on, give rights to, change the owner of."""
        self.objects.append((kind, name))


Maker = Callable[[World], None]
KINDS: dict[str, Maker] = {}
"""Every kind of thing, and what makes one."""


def kind(maker: Maker) -> Maker:
    """Let this function make the kind of its name."""
    KINDS[maker.__name__] = maker
    return maker
