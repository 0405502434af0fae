"""Random databases: schemas of every kind of object in random combination, with rows that meet their constraints.

A plan is a list of (kind, seed): what to make, in this order, each with its own dice. Each kind takes what it needs
from what was made before, and makes it when there is none.
"""

from __future__ import annotations

from random import Random

from tests.random_schemas import cluster, code, data_types, derived, partitions, rest, rights, search, tables  # noqa: F401  (they fill KINDS)
from tests.random_schemas.world import KINDS, World, literal, quoted

Plan = list[tuple[str, int]]

__all__ = ["KINDS", "Plan", "World", "everything", "literal", "made", "quoted", "random_plan"]


def everything(times: int = 1) -> Plan:
    """Return the plan that has every kind, `times` times."""
    return [(kind, turn) for turn in range(times) for kind in KINDS]


def random_plan(seed: int) -> Plan:
    """Return a plan that has every kind, in random order and some of them more often."""
    dice = Random(seed)
    kinds = [*KINDS, *dice.choices(list(KINDS), k=30)]
    dice.shuffle(kinds)
    return [(kind, dice.randrange(2**32)) for kind in kinds]


def made(plan: Plan, before: World | None = None, *, encoding: str = "UTF8") -> World:
    """Make what is planned, or more of it where there is something before."""
    world = World(encoding) if before is None else before
    for statements in (world.statements, world.later, world.last, world.watchers, world.settings, world.of_roles):
        statements.clear()
    for kind, seed in plan:
        world.dice = Random(f"{kind} {seed}")
        world.make(kind)
    return world
