"""The keep expression: which clips are good enough, as a small language over the columns of their records.

    keep = Keep.parse("motion > 0.02 and text_area < 0.05 and duration >= 2")
    keep.reason({"motion": 0.01, "text_area": 0.0, "duration": 4.0})     # "motion > 0.02"

Names are columns. Numbers, texts in quotes, true and false are values. There are `and`, `or`, `not`, comparisons (also
chained, as in 2 <= duration < 20), + - * /, and the functions abs, min and max. Nothing else can be written: no
attribute, index, call of anything else, or loop, so an expression from outside can do no harm. A part of the
expression that needs a column which a clip lacks is unknown; a clip is kept only if the whole is true.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vdit.errors import ConfigError

Value = float | int | str | bool | None
Columns = Mapping[str, Value]

LONGEST, DEEPEST = 2000, 40  # letters of an expression, and parts inside each other
_WORDS = {"true": True, "false": False}
_FUNCTIONS = {"abs": abs, "min": min, "max": max}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
            ast.NotEq: operator.ne}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One part of a keep expression that must be true. text: as written; columns: names in it."""

    text: str
    columns: tuple[str, ...]
    value: Callable[[Columns], Value] = dataclasses.field(repr=False, compare=False)

    @property
    def bounds(self) -> dict[str, list[float]]:
        """Column -> the numbers that the rule compares it with directly, to be drawn in a histogram."""
        found: dict[str, list[float]] = {}
        for node in ast.walk(ast.parse(self.text, mode="eval")):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                for left, right in itertools.pairwise(sides):
                    for name, number in ((left, right), (right, left)):
                        if isinstance(name, ast.Name) and (value := _number(number)) is not None:
                            found.setdefault(name.id, []).append(value)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """A parsed keep expression. rules: its parts between the outermost `and`s, in order; () keeps everything."""

    text: str
    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Reads an expression; "" keeps every clip.

        Raises:
            ConfigError: it is not one; the message shows the part and says what may stand there.
        """
        text = " ".join(text.split())
        if not text:
            return cls(text="", rules=())
        if len(text) > LONGEST:
            raise ConfigError(f"the keep expression has {len(text)} letters, at most {LONGEST} are read: shorten it")
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            why = getattr(error, "msg", None) or "it nests too deep"
            raise ConfigError(f"keep={text!r} cannot be read ({why}): write it like "
                              "motion > 0.02 and duration >= 2") from None  # fmt: skip
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        return cls(text=text, rules=tuple(_rule(part, text) for part in parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that it needs, sorted."""
        return tuple(sorted({name for rule in self.rules for name in rule.columns}))

    def check(self, known: Iterable[str]) -> None:
        """ConfigError where the expression names a column that is not among the known ones."""
        known = sorted(known)
        for name in self.columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"nearest: {near[0]}; " if near else ""
                raise ConfigError(f"keep={self.text!r}: there is no column {name!r} ({hint}columns: "
                                  f"{', '.join(known)})")  # fmt: skip

    def reason(self, columns: Columns) -> str | None:
        """Why a clip is not kept: the first rule that is not true of it; None where all are.

        Args:
            columns: the clip's columns. A rule on a column that is missing or None is not true.
        """
        for rule in self.rules:
            try:
                holds = rule.value(columns)
            except _Unknown as error:
                return f"{rule.text} ({error} is not known)"
            except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
                raise ConfigError(f"keep: {rule.text!r} cannot be computed ({error}): compare numbers with numbers and "
                                  "texts with texts") from None  # fmt: skip
            if holds is not True:
                return rule.text
        return None


class _Unknown(Exception):
    """A column has no value. The name is the message."""


def _rule(node: ast.expr, text: str) -> Rule:
    if _depth(node) > DEEPEST:
        raise ConfigError(f"keep={text!r}: nests deeper than {DEEPEST}: write it flatter")
    if not isinstance(node, ast.Compare | ast.BoolOp | ast.Name) and not (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    ):
        raise ConfigError(f"keep={text!r}: {ast.unparse(node)!r} is neither true nor false: compare it with something")
    names = dict.fromkeys(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
    columns = tuple(name for name in names if name not in _WORDS and name not in _FUNCTIONS)
    return Rule(text=ast.unparse(node), columns=columns, value=_compile(node, text))


def _depth(node: ast.AST) -> int:
    depth, level = 0, [node]
    while level:
        depth, level = depth + 1, [child for each in level for child in ast.iter_child_nodes(each)]
    return depth


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    plain = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return float(node.value) if plain else None


def _compile(node: ast.expr, text: str) -> Callable[[Columns], Value]:
    """The function of the columns that a node stands for."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return lambda columns: value
        case ast.Name(id=name) if name in _WORDS:
            return lambda columns: _WORDS[name]
        case ast.Name(id=name) if name not in _FUNCTIONS:
            return lambda columns: _column(columns, name)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            inside = _compile(inner, text)
            return lambda columns: not inside(columns)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            inside = _compile(inner, text)
            return lambda columns: -inside(columns)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            compute, first, second = _ARITHMETIC[type(op)], _compile(left, text), _compile(right, text)
            return lambda columns: compute(float(first(columns)), float(second(columns)))
        case ast.BoolOp(op=op, values=values):
            parts = [_compile(value, text) for value in values]
            combine = all if isinstance(op, ast.And) else any
            return lambda columns: combine(part(columns) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            sides = [_compile(side, text) for side in (left, *others)]
            tests = [_COMPARE[type(op)] for op in ops]

            def compare(columns: Columns) -> bool:
                values = [side(columns) for side in sides]
                return all(test(a, b) for test, a, b in zip(tests, values, values[1:]))

            return compare
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and arguments:
            function, parts = _FUNCTIONS[name], [_compile(argument, text) for argument in arguments]
            return lambda columns: function(*(part(columns) for part in parts))
    raise ConfigError(f"keep={text!r}: {ast.unparse(node)!r} cannot be used: write columns, numbers, comparisons, "
                      "and, or, not, + - * /, abs, min and max")  # fmt: skip


def _column(columns: Columns, name: str) -> Any:
    value = columns.get(name)
    if value is None or value != value:
        raise _Unknown(name)
    return value
