"""Mutants: small changes of the library's code, each of which a good test suite should notice.

Left out are changes that no test can or should notice: docstrings, annotations, `TYPE_CHECKING` blocks, `__slots__`,
`__all__`, decorators, `__repr__`, the texts of logs, warnings and errors, encodings, and lines that coverage leaves
out. Changes that any test notices are left out as well, because they only raise the share of the killed: a path joined
with another operator than `/`, a local variable or an attribute of a new object that is never assigned.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "weightcache"
FOLDERS = ("_transfer", "_engine", "_store", "_coordination")
NO_COVER = "pragma: no cover"
NEIGHBOURS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
TEXT_CALLS = frozenset({"debug", "info", "warning", "error", "exception", "warn", "note", "encode", "decode", "open"})
DECLARED = frozenset({"__slots__", "__all__", "__match_args__"})


class Mutant(NamedTuple):
    """One change of one file; offsets are in bytes of it.

    ``lines`` are those that run where it is, in a call. What runs at the import has no lines here, since it runs in
    whichever test of a process comes first.
    """

    module: str
    line: int
    operator: str
    start: int
    end: int
    text: str
    lines: range

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}:{self.operator}:{self.start}"

    @property
    def folder(self) -> str:
        return self.module.partition("/")[0]

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def described(self, source: bytes) -> str:
        """Return the name, and the change without its surroundings."""
        before = " ".join(source[self.start : self.end].decode().split())
        return f"{self.name}\n    - {before[:150]}\n    + {' '.join(self.text.split())[:150]}"


def _expressions(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield what may stand instead of an expression."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "compare", _with(node, "ops", [NEIGHBOURS[type(node.ops[0])]()])
    elif isinstance(node, ast.BoolOp):
        yield "and-or", _with(node, "op", NEIGHBOURS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in NEIGHBOURS and not _joins_texts(node):
        yield "arithmetic", _with(node, "op", NEIGHBOURS[type(node.op)]())
    elif isinstance(node, ast.IfExp):
        yield "negate", _with(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant):
        yield from (("constant", ast.Constant(value)) for value in _other_values(node.value))


def _joins_texts(node: ast.BinOp) -> bool:
    kinds = (ast.JoinedStr, ast.List, ast.Tuple)
    return any(
        isinstance(side, kinds) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _other_values(value: object) -> Iterator[bool | int | float | str | bytes]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        yield value - 1
    elif isinstance(value, float):
        yield value * 2 + 1
    elif isinstance(value, str) and " " not in value and value not in ("utf-8", "ascii", "replace"):
        yield f"{value}X"
    elif isinstance(value, bytes):
        yield value + b"X"


def _with(node: ast.expr, field: str, value: object) -> ast.expr:
    changed = copy.copy(node)
    setattr(changed, field, value)
    return changed


def _statements(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield what may stand instead of a whole statement."""
    match node:
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign() | ast.Delete():
            yield "delete", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]) | ast.AnnAssign(target=ast.Attribute()):
            yield "delete", "pass"
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return", "return None"
        case ast.Break():
            yield "loop", "continue"
        case ast.Continue():
            yield "loop", "break"
    if isinstance(node, ast.AugAssign) and type(node.op) in NEIGHBOURS:
        changed = copy.copy(node)
        changed.op = NEIGHBOURS[type(node.op)]()  # type: ignore[assignment]
        yield "arithmetic", ast.unparse(changed)


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, source: bytes) -> None:
        self.module, self.found = module, list[Mutant]()
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._left_out = {n for n, line in enumerate(source.splitlines(), 1) if NO_COVER.encode() in line}
        self._statement: ast.stmt | None = None
        self._function = ""

    def _add(self, node: ast.stmt | ast.expr, operator: str, text: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        assert self._statement is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        lines = range(min(self._statement.lineno, node.lineno), node.end_lineno + 1)
        if not self._left_out.intersection(lines):
            runs = lines if self._function else range(0)
            self.found.append(Mutant(self.module, node.lineno, operator, start, end, text, runs))

    def visit(self, node: ast.AST) -> None:
        before = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node
            if not _is_text(node) and not (
                self._function == "__init__" and isinstance(node, ast.Assign | ast.AnnAssign)
            ):
                for operator, text in _statements(node):
                    self._add(node, operator, text)
        elif isinstance(node, ast.expr):
            for operator, changed in _expressions(node):
                self._add(node, operator, f"({ast.unparse(ast.fix_missing_locations(changed))})")
        super().visit(node)
        self._statement = before

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self._add(node.test, "negate", f"(not ({ast.unparse(node.test)}))")
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._add(node.test, "negate", f"(not ({ast.unparse(node.test)}))")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self._add(node.type, "except", "ZeroDivisionError")
        for child in node.body:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name == "__repr__":
            return
        for default in [*node.args.defaults, *(each for each in node.args.kw_defaults if each)]:
            self.visit(default)
        outer, self._function = self._function, node.name
        for child in node.body:
            self.visit(child)
        self._function = outer

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant) and not _is_text(node):  # a docstring is a constant
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and not _is_declaration(node.target):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not _is_declaration(node.targets[0]):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Its arguments are left out where they are the text of an error, a log or a warning."""
        name = _called(node)
        if name == "of" or name.endswith(("Error", "Warning", "TypeVar")) or name in TEXT_CALLS:
            return
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave out what it raises: texts."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave it out: it is for the type checker."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave it out: its parts have no positions in older Pythons, and most are texts."""


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement only writes to a log."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="_log")))):
            return True
    return False


def _is_declaration(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id in DECLARED


def mutants_of(module: str, source: bytes) -> list[Mutant]:
    """Return all mutants of a module; a few may be no valid Python."""
    finder = _Finder(module, source)
    finder.visit(ast.parse(source))
    return finder.found


def is_valid(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def path_of(module: str, package: Path = PACKAGE) -> Path:
    return package / f"{module}.py"


@cache
def _all_of(folder: str) -> tuple[dict[str, bytes], list[Mutant]]:
    """Return the source of each module in a folder, and all their mutants in the order of their lines."""
    modules = sorted(f"{folder}/{path.stem}" for path in (PACKAGE / folder).glob("*.py"))
    sources = {module: path_of(module).read_bytes() for module in modules}
    return sources, [each for module in modules for each in mutants_of(module, sources[module])]


def sampled(count: int, seed: int) -> list[Mutant]:
    """Return ``count`` mutants, as many of each folder as of the others, and at most one a line."""
    chosen = list[Mutant]()
    for number, folder in enumerate(FOLDERS):
        sources, found = _all_of(folder)
        shuffled = random.Random(f"{seed}/{folder}").sample(found, len(found))
        chosen += _one_a_line(shuffled, sources, count // len(FOLDERS) + (number < count % len(FOLDERS)))
    return chosen


def _one_a_line(found: list[Mutant], sources: dict[str, bytes], wanted: int) -> list[Mutant]:
    chosen = dict[tuple[str, int], Mutant]()
    for each in found:
        if len(chosen) == wanted:
            break
        if (each.module, each.line) not in chosen and is_valid(each.applied(sources[each.module])):
            chosen[each.module, each.line] = each
    return list(chosen.values())
