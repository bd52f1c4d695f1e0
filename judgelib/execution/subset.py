"""The subset: an allow-list of syntax, small enough that its code can do nothing but compute.

Inside it there is no import, no attribute except a few methods of plain data, no name that begins
with an underscore, and no builtin outside `BUILTINS`, so no path leads to files, processes or the
interpreter itself. Work without end (`10**10**10`, `"a" * 10**9`) *can* be written; stopping it is
the business of the process's limits.
"""

import ast
import builtins
import warnings


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAX_SOURCE = 20_000
"""Characters; longer text could exhaust the parser, which runs in our own process."""

BUILTINS = _words(
    "abs all any bool chr dict divmod enumerate filter float int isinstance len list map max min "
    "ord pow range reversed round set sorted str sum tuple zip"
)

ALL_BUILTINS = frozenset(dir(builtins))

METHODS = _words(
    "add append capitalize center clear copy count difference discard endswith extend find get "
    "index insert intersection isalnum isalpha isdigit islower isspace isupper items join keys "
    "ljust lower lstrip partition pop remove replace reverse rfind rindex rjust rsplit rstrip "
    "setdefault sort split splitlines startswith strip swapcase title union update upper values "
    "zfill"
)

NODES = _words(
    "Module FunctionDef arguments arg Return Assign AugAssign AnnAssign For If Expr Pass Break "
    "Continue BoolOp BinOp UnaryOp IfExp Dict Set ListComp SetComp DictComp GeneratorExp Compare "
    "Call Constant Attribute Subscript Starred Name List Tuple Slice comprehension keyword "
    "Load Store And Or Not USub UAdd Invert "
    "Add Sub Mult Div FloorDiv Mod Pow LShift RShift BitAnd BitOr BitXor "
    "Eq NotEq Lt LtE Gt GtE Is IsNot In NotIn"
)

CONSTANTS = (str, int, float, bool, type(None))
TOP_LEVEL = (ast.FunctionDef, ast.Assign, ast.AnnAssign)


class OutsideSubset(ValueError):
    """The code uses something that the subset does not have; the message says what and where."""


def check_subset(source: str) -> None:
    """Raise `OutsideSubset` if `source` leaves the subset, `SyntaxError` if it does not parse."""
    tree = _parse(source)
    _check_top_level(tree)
    methods = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    bound = _bound_names(tree)
    for node in ast.walk(tree):
        complaint = _complaint(node, methods, bound)
        if complaint:
            raise OutsideSubset(f"line {getattr(node, 'lineno', '?')}: {complaint}")


def _parse(source: str) -> ast.Module:
    if len(source) > MAX_SOURCE:
        raise OutsideSubset(f"{len(source)} characters of code, at most {MAX_SOURCE} are read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in model-written text is not our warning
        try:
            return ast.parse(source)
        except (ValueError, RecursionError, MemoryError) as error:
            raise OutsideSubset(f"the parser gave up: {error}") from error


def _check_top_level(tree: ast.Module) -> None:
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, TOP_LEVEL) and not docstring:
            raise OutsideSubset(f"line {node.lineno}: {_name(node)} outside a function")


def _bound_names(tree: ast.Module) -> set[str]:
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _is_store(n)}
    names |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    return names | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def _complaint(node: ast.AST, methods: set[int], bound: set[str]) -> str | None:
    """Why this node is outside the subset, or None."""
    if _name(node) not in NODES:
        return _name(node)
    if isinstance(node, ast.Attribute):
        return _attribute_complaint(node, methods)
    if isinstance(node, ast.Name):
        return _name_complaint(node.id, bound)
    if isinstance(node, ast.arg | ast.keyword):
        return _name_complaint(node.arg or "", {node.arg or ""})
    if isinstance(node, ast.FunctionDef):
        return "decorator" if node.decorator_list else _name_complaint(node.name, {node.name})
    if isinstance(node, ast.Constant) and not isinstance(node.value, CONSTANTS):
        return f"constant of type {type(node.value).__name__}"
    if isinstance(node, ast.comprehension) and node.is_async:
        return "async"
    return None


def _attribute_complaint(node: ast.Attribute, methods: set[int]) -> str | None:
    if node.attr not in METHODS:
        return f"attribute {node.attr}"
    return None if id(node) in methods else f"attribute {node.attr} that is not called"


def _name_complaint(name: str, bound: set[str]) -> str | None:
    if name.startswith("_") and name != "_":
        return f"name {name}"
    outside = name in ALL_BUILTINS and name not in BUILTINS and name not in bound
    return f"builtin {name}" if outside else None


def _is_store(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _name(node: ast.AST) -> str:
    return type(node).__name__
