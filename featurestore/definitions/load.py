"""Reads a file or module of definitions, with every fault of it reported at once."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from featurestore.contracts.contract import load_contract
from featurestore.definitions.aggregates import Aggregate
from featurestore.definitions.compile import Definitions, check
from featurestore.definitions.model import FeatureService, FeatureView, Source
from featurestore.definitions.repeats import repeated_names
from featurestore.definitions.sources import ContractOrError
from featurestore.errors import ContractError, DefinitionError, Fault, NotFound

MAX_FILE_BYTES = 4 << 20
SCHEMAS_DIR = "schemas"


@dataclass(frozen=True, slots=True)
class _File:
    """Where definitions are, before anything is run. `module` is empty for a plain file."""

    path: Path
    module: str = ""


def load_definitions(target: str, schemas: Path | None = None) -> Definitions:
    """Import a dotted module or a `.py` file, collect its views and services, and check them.

    Contracts are read from `schemas`, or else from `schemas/` beside the file. Raises NotFound where there is no such
    file or module, and DefinitionError with all faults, one that an exception in the file caused included.
    """
    with _importable(Path.cwd()):
        file = _find(target)
        with _importable(file.path.parent):
            return _load(file, schemas)


def _load(file: _File, schemas: Path | None) -> Definitions:
    repeats = repeated_names(_parse(file.path))
    try:
        module = _run(file)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the file raises is a fault of the file
        raise DefinitionError([*repeats, _fault_of(error, file.path)]) from None
    found = _collect(module)
    faults = [*repeats, *_undecorated(found, file.path)]
    views = [item for item in found if isinstance(item, FeatureView)]
    services = [item for item in found if isinstance(item, FeatureService)]
    if not views and not services and not faults:
        faults.append(Fault(str(file.path), "defines nothing", "a class under @feature_view(…), or a FeatureService"))
    root = schemas if schemas is not None else file.path.parent / SCHEMAS_DIR
    return check(views, services, _contracts(views, services, root), earlier=faults)


def _find(target: str) -> _File:
    if target.endswith(".py") or "/" in target:
        path = Path(target)
        if path.is_file():
            return _File(path.resolve())
        raise _no_file(target, path)
    try:
        spec = importlib.util.find_spec(target)
    except ModuleNotFoundError:
        spec = None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a parent package ran, and may have raised anything
        raise DefinitionError([_fault_of(error, Path(target.partition(".")[0]))]) from None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise NotFound("module of definitions", target, _neighbours(Path.cwd()),
                       hint="give a dotted module that Python can import from here, or a .py file")  # fmt: skip
    return _File(Path(spec.origin), target)


def _no_file(target: str, path: Path) -> NotFound:
    if path.is_dir():
        known = [str(path / name) for name in _neighbours(path)]
        return NotFound("file of definitions", target, known, hint=f"{target} is a directory; name a .py file in it")
    parent = path.parent
    if not parent.is_dir():
        return NotFound("file of definitions", target, hint=f"there is no directory {parent}")
    names = _neighbours(parent)
    hint = f"{parent.resolve()} has {', '.join(names[:10])}" if names else f"{parent.resolve()} has no .py files"
    return NotFound("file of definitions", target, [str(parent / name) for name in names], hint=hint)


def _neighbours(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.py"))


def _parse(path: Path) -> ast.Module:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise DefinitionError([Fault(str(path), f"cannot be read: {error.strerror}")]) from None
    if len(source) > MAX_FILE_BYTES:
        raise DefinitionError([Fault(str(path), f"has {len(source)} bytes", f"at most {MAX_FILE_BYTES}")])
    try:
        return ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DefinitionError([_fault_of(error, path)]) from None


class _FreshLoader(SourceFileLoader):
    """Compiles the text there is now: cached bytecode misses an edit of equal length within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run(file: _File) -> ModuleType:
    if file.module:
        return importlib.import_module(file.module)
    name = f"featurestore_definitions_{file.path.stem}"
    loader = _FreshLoader(name, str(file.path))
    module = ModuleType(name)
    module.__file__ = str(file.path)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    finally:
        sys.modules.pop(name, None)
    return module


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Definitions may be split over files that import each other by name."""
    entry = str(directory)
    added = entry not in sys.path
    if added:
        sys.path.insert(0, entry)
    try:
        yield
    finally:
        if added and entry in sys.path:
            sys.path.remove(entry)


def _fault_of(error: BaseException, path: Path) -> Fault:
    """File, line and message of whatever importing raised; the file's own line where it has one."""
    if isinstance(error, SyntaxError):
        return Fault(f"{error.filename or path}:{error.lineno or 1}", f"{type(error).__name__}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == path]
    where = f"{path}:{own[-1].lineno}" if own else str(path)
    text = str(error).strip().splitlines()
    return Fault(where, f"{type(error).__name__}: {text[0]}" if text else type(error).__name__)


def _collect(module: ModuleType) -> list[Any]:
    """Module-level objects, those in its lists and mappings included, in the order of the file."""
    found: list[Any] = []
    for name, value in vars(module).items():
        if name.startswith("__"):
            continue
        found.append(value)
        if isinstance(value, Mapping):
            found.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            found.extend(value)
    return found


def _undecorated(found: Iterable[Any], path: Path) -> Iterator[Fault]:
    """A class that has features and is no view would be lost in silence."""
    for item in found:
        if isinstance(item, type) and any(isinstance(value, Aggregate) for value in vars(item).values()):
            yield Fault(
                item.__name__, f"has features, but is no view ({path.name})", "@feature_view(…) above the class"
            )


def _contracts(
    views: Iterable[FeatureView], services: Iterable[FeatureService], root: Path
) -> dict[str, ContractOrError]:
    """Each contract that a source names, or the error that reading it gave."""
    chosen = [getattr(item, "view", item) for service in services for item in _sequence(service.views)]
    sources = [getattr(view, "source", None) for view in [*views, *chosen]]
    ids = {source.contract for source in sources if isinstance(source, Source)}
    return {contract_id: _contract(root, contract_id) for contract_id in ids if _is_text(contract_id)}


def _contract(root: Path, contract_id: str) -> ContractOrError:
    try:
        return load_contract(root, contract_id)
    except (ContractError, NotFound) as error:
        return error


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
