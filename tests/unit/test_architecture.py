"""The direction of imports, who may use which library, and the size of things: read from the source, not run."""

from __future__ import annotations

import ast
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import modelstore
from modelstore.plugins import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(modelstore.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_bytes()) for name, path in FILES.items()}

# Lowest first. A module may import from lower layers and from its own, unless it is one of a kind (see below).
LAYERS = (
    ("errors", "digest", "progress"),
    ("source_url", "manifest", "layer_names", "config"),
    ("sources.base", "tiers.base", "layouts.base"),
    ("transfer", "locking", "formats", "registry"),
    ("sources", "tiers", "layouts"),
    ("model", "plugins", "fetching", "maintenance", "tiering", "store"),
    ("", "cli", "__main__", "testing"),
)
#: One file per kind: these know nothing of each other.
KINDS = ("sources", "tiers", "layouts", "formats")
#: A library, and the one place that may know it.
OWNERS = {
    "urllib3": "transfer/http/",
    "filelock": "locking.py",
    "huggingface_hub": "sources/huggingface.py",
    "botocore": "sources/s3.py",
    "fsspec": "sources/fsspec.py",
    "tqdm": "progress.py",
    "xxhash": "digest.py",
    "click": "cli/",
    "pytest": "testing/",
    "hypothesis": "testing/",
}
FORBIDDEN = {
    "pickle",
    "cPickle",
    "shelve",
    "marshal",
    "dill",
    "joblib",
    "yaml",
    "torch",
    "tarfile",
    "zipfile",
    "requests",
    "asyncio",
}


def module_of(name: str) -> str:
    """`transfer/http.py` is `transfer.http`; the package itself is `""`."""
    return name.removesuffix(".py").replace("/", ".").removesuffix("__init__").removesuffix(".")


def rank(module: str) -> int:
    while True:
        for number, layer in enumerate(LAYERS):
            if module in layer:
                return number
        assert "." in module, f"{module!r} is in no layer"
        module = module.rpartition(".")[0]


def imports(name: str) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, absolute."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    modules = {module_of(file) for file in FILES}
    found = {
        "" if target == "modelstore" else target.removeprefix("modelstore.")
        for target in imports(name)
        if target.split(".")[0] == "modelstore"
    }
    # `from modelstore import errors` names the package only on the way to a module of it.
    through_package = {
        alias.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ImportFrom) and node.module == "modelstore"
        for alias in node.names
    }
    if through_package and through_package <= modules:
        found.discard("")
    return found & modules


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name: str) -> None:
    module = module_of(name)
    for target in own_imports(name):
        assert rank(target) <= rank(module), f"{name} imports {target}, which is above it"
        if rank(target) == rank(module):
            apart = rank(module) == rank("sources") and module.split(".")[0] != target.split(".")[0]
            assert not apart, f"{name} imports {target}, beside it"


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_a_kind_knows_no_other(kind: str) -> None:
    names = [name for name in FILES if name.startswith(f"{kind}/")]
    assert len(names) > 1
    for name in names:
        siblings = {target for target in own_imports(name) if target.startswith(f"{kind}.")} - {
            f"{kind}.base",
            module_of(name),
        }
        assert not siblings, name


def test_imports_form_no_circle() -> None:
    left = {module_of(name): own_imports(name) - {module_of(name)} for name in FILES}
    while ready := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in ready:
            del left[module]
    assert not left


@pytest.mark.parametrize("name", FILES)
def test_a_library_is_known_in_one_place(name: str) -> None:
    for target in imports(name):
        library = target.split(".")[0]
        owner = OWNERS.get(library)
        assert library not in FORBIDDEN, f"{name} imports {target}"
        assert owner is None or name == owner or (owner.endswith("/") and name.startswith(owner)), (
            f"{name} imports {target}"
        )


def test_every_library_is_used_where_it_is_said_to_be() -> None:
    """Else the test above could be looking for the wrong thing."""
    for library in ("urllib3", "filelock", "tqdm", "xxhash", "click"):
        assert any(
            target.split(".")[0] == library
            for name in FILES
            if name.startswith(OWNERS[library])
            for target in imports(name)
        )


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_small(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{name}: {node.name}"


@pytest.mark.parametrize("name", FILES)
def test_only_the_boundary_catches_everything(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "everything"
        where = f"{name}:{node.lineno} catches {caught}"
        boundary = name in ("cli/__init__.py", "sources/fsspec.py")  # each of its backends has errors of its own
        assert boundary or "Exception" not in caught.split("(")[-1].rstrip(")").split(", "), where
        if node.type is None or "BaseException" in caught:
            last = node.body[-1]
            passed_on = name == "transfer/lanes.py" and "set_exception" in ast.unparse(last)
            assert isinstance(last, ast.Raise) or passed_on, f"{where} and does not raise again"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_executed(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "os.system", "os.popen", "__import__"}, (
                f"{name}:{node.lineno}"
            )
            # Docker's credential helpers, which the user's own file names.
            helper = name == "registry/docker_config.py" and called == "subprocess.run"
            assert helper or not called.startswith("subprocess."), f"{name}:{node.lineno}"


# -- plug-ins ----------------------------------------------------------------------------------------------------------


def project_file() -> Path:
    return next(folder / "pyproject.toml" for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())


def test_what_is_built_in_is_what_the_project_declares() -> None:
    declared = tomllib.loads(project_file().read_text())["project"]["entry-points"]
    assert declared == BUILT_IN


@pytest.mark.parametrize("group", BUILT_IN)
def test_what_is_built_in_is_what_is_installed(group: str) -> None:
    ours = {
        entry.name: entry
        for entry in metadata.entry_points(group=group)
        if entry.dist and entry.dist.name == "llm-modelstore"
    }
    assert {name: entry.value for name, entry in ours.items()} == BUILT_IN[group]
    for entry in ours.values():
        assert isinstance(entry.load(), type)
