"""What can be broken in a module: comparisons, bounds, guards, errors, arithmetic, values, calls.

A mutant is one node of the syntax tree in another's place. Texts for people are left alone (what is inside of an
error's or a log's call, and strings with a space), as are annotations of functions, assertions (they narrow types)
and imports.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

# An error in place of another: its type and its code are what callers act upon.
_ERRORS: Final = {
    "ArchiveError": "CorruptArchive",
    "CorruptArchive": "UnsupportedArchive",
    "IncompleteArchive": "CorruptArchive",
    "UnsupportedArchive": "CorruptArchive",
    "NotAuthentic": "CorruptArchive",
}
_COMPARED: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_SWAPPED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_KEPT_DECORATORS: Final = {"dataclass", "property", "classmethod", "staticmethod", "asynccontextmanager"}
_NOT_TOUCHED: Final = {"TypeVar", "NewType", "ParamSpec", "ConfigDict", "getLogger"}
_LOGGERS: Final = {"log", "logger", "logging"}
_NOT_SHOWN: Final = ast.Tuple | ast.Slice | ast.JoinedStr | ast.Await | ast.UnaryOp
_LONGEST: Final = 110

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Mutant:
    """`new` in the place of a node: `parent.field`, or its item `index`."""

    where: str
    """The function or class it is in; empty at the top of a module."""
    line: int
    lines: range
    """Those of the statement: whoever runs one of them may notice."""
    imported: bool
    """Whether the statement runs when the module is imported."""
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST
    name: str = ""
    """What it is, without the number of its line: its name in the list of mutants that change nothing."""

    def swap(self) -> None:
        """Put `new` into the tree, and take out of it what was there; again, and it is as it was."""
        if self.index is None:
            old = getattr(self.parent, self.field)
            setattr(self.parent, self.field, self.new)
        else:
            items = getattr(self.parent, self.field)
            old, items[self.index] = items[self.index], self.new
        self.new = old


def mutants_of(tree: ast.Module) -> list[Mutant]:
    """Return all mutants of a module, each with a name of its own."""
    found = list(_Walk().module(tree))
    seen: Counter[str] = Counter()
    for mutant in found:
        seen[mutant.name] += 1
        if seen[mutant.name] > 1:
            mutant.name += f" #{seen[mutant.name]}"
    return found


@dataclass
class _Walk:
    """Where the walk is: the names around, the statement, and the expressions from it down to here."""

    names: list[str] = field(default_factory=list)
    inside: int = 0  # so many functions are around
    statement: ast.stmt | None = None
    above: list[ast.AST] = field(default_factory=list)

    def module(self, tree: ast.Module) -> Iterator[Mutant]:
        yield from self._body(tree, "body")

    # Statements

    def _body(self, holder: ast.AST, name: str) -> Iterator[Mutant]:
        for index, statement in enumerate(getattr(holder, name)):
            self.statement, self.above = statement, []
            alone = isinstance(holder, ast.If) and len(getattr(holder, name)) == 1 and not holder.orelse
            yield from self._statement(holder, name, index, statement, alone)

    def _statement(self, holder: ast.AST, name: str, at: int, node: ast.stmt, alone: bool) -> Iterator[Mutant]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield from self._definition(node)
                return
            case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Expr(value=ast.Constant()):
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Expr(value=ast.Call() as call) if _logs(call):
                return
            case ast.Break():
                yield self._mutant(holder, name, at, ast.Continue(), shown="break → continue")
            case ast.Continue():
                yield self._mutant(holder, name, at, ast.Break(), shown="continue → break")
            case ast.Raise() | ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Delete() if not alone:
                yield self._mutant(holder, name, at, ast.Pass(), shown=f"{_text(node)[:_LONGEST]} → pass")
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield self._mutant(node, "value", None, ast.Constant(None))
            case _:
                pass
        bodies = []
        for name_, value in ast.iter_fields(node):
            if name_ in {"body", "orelse", "finalbody", "handlers"} and isinstance(value, list):
                bodies.append(name_)
            elif name_ == "annotation":
                if not self.inside:
                    yield from self._annotation(node, value)
            else:
                yield from self._children(node, name_, value)
        for name_ in bodies:
            if name_ == "handlers":
                for handler in node.handlers:  # type: ignore[attr-defined]
                    yield from self._handler(handler)
            else:
                yield from self._body(node, name_)
                self.statement = node

    def _definition(self, node: Function | ast.ClassDef) -> Iterator[Mutant]:
        for index, decorator in enumerate(node.decorator_list):
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if getattr(called, "id", "") not in _KEPT_DECORATORS:
                fewer = [each for number, each in enumerate(node.decorator_list) if number != index]
                yield self._mutant(node, "decorator_list", None, fewer, shown=f"@{ast.unparse(decorator)} → ")
                yield from self._expression(node, "decorator_list", index, decorator)
        if isinstance(node, ast.ClassDef):
            for index, keyword in enumerate(node.keywords):
                yield from self._expression(node.keywords[index], "value", None, keyword.value)
        else:
            for name in ("defaults", "kw_defaults"):
                for index, default in enumerate(getattr(node.args, name)):
                    if default is not None:
                        yield from self._expression(node.args, name, index, default)
        self.names.append(node.name)
        deeper = not isinstance(node, ast.ClassDef)
        self.inside += deeper
        yield from self._body(node, "body")
        self.inside -= deeper
        self.names.pop()
        self.statement = node

    def _handler(self, handler: ast.ExceptHandler) -> Iterator[Mutant]:
        around, self.statement, self.above = self.statement, handler, []  # type: ignore[assignment]
        kinds = handler.type
        if kinds is not None:
            shown = f"except {ast.unparse(kinds)} → except "
            nothing = ast.Tuple([], ast.Load())
            yield self._mutant(handler, "type", None, nothing, shown=f"{shown}()")
            if isinstance(kinds, ast.Tuple):
                for index in range(len(kinds.elts)):
                    fewer = ast.Tuple(kinds.elts[:index] + kinds.elts[index + 1 :], ast.Load())
                    yield self._mutant(handler, "type", None, fewer, shown=f"{shown}{ast.unparse(fewer)}")
        yield from self._body(handler, "body")
        self.statement = around

    # Expressions

    def _annotation(self, node: ast.AST, annotation: ast.expr) -> Iterator[Mutant]:
        """What stands in calls only: `Annotated[int, Field(ge=0)]` has a check in it."""
        for parent in ast.walk(annotation):
            for name, value in ast.iter_fields(parent):
                for index, item in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(item, ast.Call):
                        self.above = [node]
                        yield from self._expression(parent, name, index if isinstance(value, list) else None, item)

    def _children(self, node: ast.AST, name: str, value: Any) -> Iterator[Mutant]:
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield from self._expression(node, name, index, item)
        elif isinstance(value, ast.AST):
            yield from self._expression(node, name, None, value)

    def _expression(self, parent: ast.AST, name: str, index: int | None, node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.Call) and _called(node) in _NOT_TOUCHED:
            return
        for new in self._instead(parent, name, node):
            shown = ""
            if isinstance(node, ast.Call) and _is_error(_called(node)) and isinstance(new, ast.Call):
                shown = f"{_text(node)[:_LONGEST]} → {ast.unparse(new.func).rpartition('.')[2]}"
            yield self._mutant(parent, name, index, new, shown=shown)
        if isinstance(node, ast.Call) and (_logs(node) or _is_error(_called(node))):
            return  # the rest of it is for people
        self.above.append(node)
        for inner, value in ast.iter_fields(node):
            if inner != "annotation":
                yield from self._children(node, inner, value)
        self.above.pop()

    def _instead(self, parent: ast.AST, name: str, node: ast.AST) -> Iterator[ast.AST]:
        """What may stand in the place of an expression."""
        if name == "test" and isinstance(parent, ast.If | ast.While | ast.IfExp):
            yield ast.Constant(False)
            if not isinstance(parent, ast.While):
                yield ast.Constant(True)
        match node:
            case ast.Compare():
                yield from _compared(node)
            case ast.BoolOp(op, values):
                yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
                for number in range(len(values)):
                    fewer = values[:number] + values[number + 1 :]
                    yield fewer[0] if len(fewer) == 1 else ast.BoolOp(op, fewer)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield operand
            case ast.UnaryOp(op=ast.USub() | ast.Invert(), operand=operand):
                yield operand
            case ast.BinOp(op=ast.BitOr(), right=ast.Constant(value=None)):
                return  # a type
            case ast.BinOp(left, op, right) if type(op) in _COMPUTED:
                yield ast.BinOp(left, _COMPUTED[type(op)](), right)
            case ast.Constant():
                yield from self._values(node)
            case ast.Slice(lower, upper, step):
                if lower is not None:
                    yield ast.Slice(None, upper, step)
                if upper is not None:
                    yield ast.Slice(lower, None, step)
            case ast.comprehension(ifs=[_, *_]):
                yield ast.comprehension(node.target, node.iter, [], node.is_async)
            case ast.Call():
                yield from _called_otherwise(node)
            case _:
                pass
        if isinstance(parent, ast.AugAssign) and name == "op" and type(node) in _COMPUTED:
            yield _COMPUTED[type(node)]()  # type: ignore[index]

    def _values(self, node: ast.Constant) -> Iterator[ast.AST]:
        value = node.value
        if isinstance(value, bool):
            yield ast.Constant(not value)
        elif isinstance(value, int):
            yield ast.Constant(value + 1)
            if value > 0:
                yield ast.Constant(value - 1)
        elif isinstance(value, float):
            yield ast.Constant(value * 2)
        elif isinstance(value, bytes):
            yield ast.Constant(value[:-1] if value else b"X")
        elif isinstance(value, str):
            if self._is_pattern():
                yield from map(ast.Constant, _looser(value))
            elif " " not in value:
                yield ast.Constant(value[:-1] if value else "X")

    def _is_pattern(self) -> bool:
        """Whether the string here is a regular expression."""
        around = [each for each in self.above if not isinstance(each, ast.JoinedStr)][-1:]
        match around:
            case [ast.keyword(arg="pattern")]:
                return True
            case [ast.Call(func=ast.Attribute(value=ast.Name(id="re")))]:
                return True
            case _:
                return False

    # A mutant's name

    def _mutant(self, parent: ast.AST, name: str, index: int | None, new: Any, *, shown: str = "") -> Mutant:
        assert self.statement is not None
        made = Mutant(
            where=".".join(self.names),
            line=getattr(new if index is None else getattr(parent, name)[index], "lineno", self.statement.lineno),
            lines=_lines(self.statement),
            imported=not self.inside,
            parent=parent,
            field=name,
            index=index,
            new=new,
        )
        if not shown:
            about = self._context(parent)
            before = _text(about)
            made.swap()
            shown = _difference(before, _text(about))
            made.swap()
        made.name = f"{made.where}: {shown}" if made.where else shown
        return made

    def _context(self, parent: ast.AST) -> ast.AST:
        """What to show of the surroundings: the expression around; where there is no function, the statement."""
        for each in [parent, *reversed(self.above)] if self.inside else []:
            if isinstance(each, ast.expr) and not isinstance(each, _NOT_SHOWN):
                return each
        assert self.statement is not None
        return self.statement


def _compared(node: ast.Compare) -> Iterator[ast.AST]:
    for index, op in enumerate(node.ops):
        for other in _COMPARED[type(op)]:
            yield ast.Compare(node.left, [*node.ops[:index], other(), *node.ops[index + 1 :]], node.comparators)


def _called_otherwise(node: ast.Call) -> Iterator[ast.AST]:
    name = _called(node)
    if name in _SWAPPED and isinstance(node.func, ast.Name):
        yield ast.Call(ast.Name(_SWAPPED[name], ast.Load()), node.args, node.keywords)
    if name == "sorted":
        yield node.args[0]
    if _is_error(name) and isinstance(node.func, ast.Name):
        yield _other_error(node, name)
    elif not _logs(node):
        for index, keyword in enumerate(node.keywords):
            if keyword.arg not in {None, "hint"}:
                yield ast.Call(node.func, node.args, node.keywords[:index] + node.keywords[index + 1 :])


def _other_error(node: ast.Call, name: str) -> ast.AST:
    """Return a call of another error, which needs no import."""
    kind = f"__import__('service.errors', fromlist=['x']).{_ERRORS[name]}" if name in _ERRORS else "RuntimeError"
    return ast.Call(ast.parse(kind, mode="eval").body, [ast.Constant("another error")], [])


def _looser(pattern: str) -> Iterator[str]:
    """Regular expressions that are nearly the same: without an anchor, with other counts, with any character."""
    for anchor in (r"\A", r"\z", r"\Z", "^", "$"):
        if anchor in pattern.replace("[^", ""):
            yield pattern.replace(anchor, "", 1)
    for match in re.finditer(r"\{(\d+)(?:(,)(\d+))?\}", pattern):
        low, comma, high = int(match[1]), match[2] or "", match[3]
        for less, more in ((low + 1, high), (low - 1, high), (low, _plus(high, 1)), (low, _plus(high, -1))):
            if less >= 0 and (less, more) != (low, high) and (more is None or less <= int(more)):
                yield f"{pattern[: match.start()]}{{{less}{comma}{more or ''}}}{pattern[match.end() :]}"
    for match in re.finditer(r"\[[^\]]+\]", pattern):
        yield f"{pattern[: match.start()]}.{pattern[match.end() :]}"
    for match in re.finditer(r"\\\.", pattern):
        yield f"{pattern[: match.start()]}.{pattern[match.end() :]}"


def _plus(number: str | None, more: int) -> str | None:
    return None if number is None else str(int(number) + more)


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _logs(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in _LOGGERS


def _is_error(name: str) -> bool:
    return name in _ERRORS or bool(re.search(r"[a-z](Error|Unavailable|Archive|Full|Tpm|Slot|Wrong|Required)$", name))


def _lines(statement: ast.stmt) -> range:
    """Return the lines of a statement; of one with a body, those above the body."""
    body = getattr(statement, "body", None)
    end = statement.end_lineno or statement.lineno
    if isinstance(body, list) and body:
        end = max(statement.lineno, body[0].lineno - 1)
    return range(statement.lineno, end + 1)


def _text(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(copy.copy(node)))
    return text.splitlines()[0].rstrip(":") if isinstance(node, ast.stmt | ast.ExceptHandler) else text


def _difference(before: str, after: str) -> str:
    """Say what became of a text, with what is around the change when it is long."""
    if max(len(before), len(after)) > _LONGEST:
        same = next((at for at, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), 0)
        back = next((at for at, (x, y) in enumerate(zip(before[::-1], after[::-1], strict=False)) if x != y), 0)
        back = min(back, len(before) - same, len(after) - same)
        start, end = max(0, same - 40), max(0, back - 40)
        before, after = (f"{'…' * (start > 0)}{text[start : len(text) - end]}" for text in (before, after))
        before, after = (text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]}…" for text in (before, after))
    return f"{before} → {after}"
