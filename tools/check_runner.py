"""Checks that the runner is Python 3.9 and pure, and imports the stdlib, anyio, urllib3 and nothing else of tesgate.

python tools/check_runner.py [--no-wheels]
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["check_module", "check_tree", "check_wheels"]

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "src" / "tesgate" / "runner"
OLDEST = (3, 9)
THIRD_PARTY = {"anyio", "urllib3"}

NEWER_MODULES = {"tomllib", "annotationlib", "compression", "_typing", "_tokenize"}
"""Top-level stdlib modules that came after 3.9."""

NEWER_NAMES = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "Timeout", "timeout", "timeout_at"},
    "collections.abc": {"Buffer"},
    "contextlib": {"aclosing", "chdir"},
    "dataclasses": {"KW_ONLY"},
    "datetime": {"UTC"},
    "enum": {"EnumType", "FlagBoundary", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "verify"},
    "hashlib": {"file_digest"},
    "http": {"HTTPMethod"},
    "inspect": {"get_annotations"},
    "itertools": {"batched", "pairwise"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call"},
    "os": {"EFD_CLOEXEC", "eventfd", "login_tty", "process_cpu_count", "setns", "splice", "unshare"},
    "statistics": {"correlation", "covariance", "linear_regression"},
    "sys": {"exception", "orig_argv", "stdlib_module_names"},
    "types": {"EllipsisType", "NoneType", "NotImplementedType", "UnionType", "get_original_bases"},
    "typing": {
        "Concatenate", "LiteralString", "Never", "NotRequired", "ParamSpec", "ParamSpecArgs", "ParamSpecKwargs",
        "ReadOnly", "Required", "Self", "TypeAlias", "TypeAliasType", "TypeGuard", "TypeIs", "TypeVarTuple", "Unpack",
        "assert_never", "assert_type", "clear_overloads", "dataclass_transform", "get_overloads",
        "get_protocol_members", "is_typeddict", "override", "reveal_type",
    },
}  # fmt: skip
"""Names that came after 3.9 into modules that 3.9 has (the usual ones; tests import everything under a real 3.9)."""

NEWER_ARGUMENTS = {"dataclass": {"kw_only", "slots", "match_args", "weakref_slot"}, "zip": {"strict"}}
BUILTINS = {"aiter", "anext", "ExceptionGroup", "BaseExceptionGroup", "EncodingWarning", "PythonFinalizationError"}


def _import_faults(node: ast.Import | ast.ImportFrom, package: list[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif node.level:
        kept = package[: len(package) - (node.level - 1)]
        modules = [".".join([*kept, *([node.module] if node.module else [])])]
    else:
        modules = [node.module or ""]
    for module in modules:
        top = module.partition(".")[0]
        if top == "tesgate":
            version_only = isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} == {"__version__"}
            from_root = isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} == {"runner"}
            if module == "tesgate" and (version_only or from_root):
                continue
            if module != "tesgate.runner" and not module.startswith("tesgate.runner."):
                yield f"imports {module}, which is not of the runner"
        elif top in NEWER_MODULES or (top not in sys.stdlib_module_names and top not in THIRD_PARTY):
            yield f"imports {module}, which is neither in the stdlib of 3.9 nor one of {', '.join(sorted(THIRD_PARTY))}"
    if isinstance(node, ast.ImportFrom) and not node.level:
        for alias in node.names:
            if alias.name in NEWER_NAMES.get(node.module or "", ()):
                yield f"imports {node.module}.{alias.name}, which came after 3.9"


def _never_run(tree: ast.Module) -> set[ast.AST]:
    """Imports of typing_extensions for type checkers alone."""
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    inside = [line for guard in guards if ast.unparse(guard.test) == "TYPE_CHECKING" for line in guard.body]
    return {node for node in inside if isinstance(node, ast.ImportFrom) and node.module == "typing_extensions"}


def _unions(annotation: ast.expr | None) -> bool:
    if annotation is None:
        return False
    return any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) for node in ast.walk(annotation))


def _other_faults(node: ast.AST, postponed: bool) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.attr in NEWER_NAMES.get(node.value.id, ()):
            yield f"uses {node.value.id}.{node.attr}, which came after 3.9"
    elif isinstance(node, ast.Name) and node.id in BUILTINS:
        yield f"uses {node.id}, which came after 3.9"
    elif isinstance(node, ast.Call):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for keyword in node.keywords:
            if keyword.arg in NEWER_ARGUMENTS.get(function, ()):
                yield f"calls {function}({keyword.arg}=...), which came after 3.9"
        if function in ("isinstance", "issubclass") and len(node.args) == 2 and _unions(node.args[1]):
            yield "uses X | Y at run time, which came after 3.9"
    elif isinstance(node, ast.ClassDef):
        for statement in node.body:  # `wire` and dataclasses evaluate these
            if isinstance(statement, ast.AnnAssign) and _unions(statement.annotation):
                yield f"annotates a field of {node.name} with X | Y, which 3.9 cannot evaluate"
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not postponed:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if _unions(node.returns) or any(_unions(argument.annotation) for argument in arguments):
            yield f"annotates {node.name} with X | Y without postponed evaluation"


def check_module(text: str, name: str, package: list[str]) -> list[str]:
    """The faults of one module, each with its line; `package` is what a relative import starts from."""
    try:
        tree = ast.parse(text, filename=name, feature_version=OLDEST)
    except SyntaxError as error:
        return [f"{name}:{error.lineno}: is not Python 3.9: {error.msg}"]
    postponed = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(a.name == "annotations" for a in node.names)
        for node in tree.body
    )
    unrun = _never_run(tree)
    faults = []
    for node in ast.walk(tree):
        if node in unrun:
            continue
        found = list(_import_faults(node, package)) if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        found += _other_faults(node, postponed)
        faults += [f"{name}:{getattr(node, 'lineno', 0)}: {fault}" for fault in found]
    return faults


def check_tree(runner: Path = RUNNER) -> list[str]:
    """The faults of every module below `runner`."""
    faults = []
    for path in sorted(runner.rglob("*.py")):
        package = ["tesgate", "runner", *path.relative_to(runner).parent.parts]
        faults += check_module(path.read_text(encoding="utf-8"), str(path), package)
    return faults


def check_wheels(paths: dict[str, Path]) -> list[str]:
    """The faults of the locked wheels: each must be py3-none-any, by its name and by what is in it."""
    faults = []
    for pin, path in sorted(paths.items()):
        tag = path.stem.split("-")[-3:]
        with zipfile.ZipFile(path) as wheel:
            native = [name for name in wheel.namelist() if name.endswith((".so", ".pyd", ".dylib"))]
        if "py3" not in tag[0].split(".") or tag[1:] != ["none", "any"] or native:
            faults.append(f"{pin}: {path.name} is not a pure-Python wheel (py3-none-any)")
    return faults


def _locked_wheels() -> dict[str, Path]:
    spec = importlib.util.spec_from_file_location("build_runner", ROOT / "tools" / "build_runner.py")
    if spec is None or spec.loader is None:
        raise RuntimeError("tools/build_runner.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Path] = module.wheels()
    return found


def main() -> int:
    faults = check_tree()
    if "--no-wheels" not in sys.argv[1:]:
        faults += check_wheels(_locked_wheels())
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
