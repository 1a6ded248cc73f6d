"""What is installed: one top-level package, with every source file in it, built from an sdist."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".proto", ".pyi", "py.typed")
PACKAGES: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
FOLDERS = {package: folder for package, folder in PACKAGES.items() if package.count(".") <= 1}


def copy_sources(target: Path) -> Path:
    """A tree with nothing but what is checked in: no build folder, no link, no compiled file."""
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    return target


def build(tree: Path, out: Path) -> Path:
    """Build an sdist, and the wheel from it, with what is installed."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    return wheel


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def missing(wheel: Path, tree: Path) -> set[str]:
    """The source files of a tree that a wheel built from it does not hold."""
    found = {
        f"{package.replace('.', '/')}/{path.relative_to(tree / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (tree / folder).rglob("*")
        if path.name.endswith(SOURCES)
    }
    assert len(found) > 50
    return found - names(wheel)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_sources(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("dist"))


def test_cellport_is_the_only_name_that_a_wheel_installs(wheel: Path) -> None:
    """No `cells`, `export`, `serve` or `protos` at the top level, where they would meet others."""
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"cellport"}
    assert len(tops) == 2


def test_every_source_file_is_in_the_wheel(wheel: Path) -> None:
    assert missing(wheel, ROOT) == set()
    assert {"cellport/py.typed", "cellport/protos/inference.proto", "cellport/export/passes/__init__.py"} <= names(
        wheel
    )


def test_a_folder_that_the_build_does_not_list_is_noticed(tmp_path: Path) -> None:
    """Packages are listed one by one: a new folder is easily forgotten."""
    tree = copy_sources(tmp_path / "tree")
    (tree / "export" / "forgotten").mkdir()
    (tree / "export" / "forgotten" / "__init__.py").touch()
    assert missing(build(tree, tmp_path / "dist"), tree) == {"cellport/export/forgotten/__init__.py"}


def test_the_wheel_alone_is_importable(wheel: Path, tmp_path: Path) -> None:
    """Without the repository: the packages and the command come from the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        entry_points = next(archive.read(name) for name in names(wheel) if name.endswith("entry_points.txt"))
    assert b"cellport = cellport.cli:main" in entry_points
    code = """if True:
        import importlib.util, sys
        sys.path.insert(0, sys.argv[1])
        import cellport.cells, cellport.export.passes, cellport.cli
        import cellport.protos.inference_pb2, cellport.serve.client
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "cellport":
                assert module.__file__.startswith(sys.argv[1]), module
        for name in ("cells", "export", "serve", "protos"):
            assert importlib.util.find_spec(name) is None, name
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120, cwd=tmp_path)


def test_extras_name_what_each_part_needs() -> None:
    """cellport alone is the client and the manifest; torch comes only with [export]."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def heavy(requirements: list[str]) -> set[str]:
        return {
            name for name in ("torch", "onnx", "onnxruntime") if any(r.startswith(f"{name}>") for r in requirements)
        }

    assert heavy(project["dependencies"]) == set()
    assert heavy(project["optional-dependencies"]["serve"]) == {"onnxruntime"}
    assert heavy(project["optional-dependencies"]["export"]) == {"torch", "onnx", "onnxruntime"}


def test_the_folders_are_imported_by_their_package_names_only() -> None:
    """ruff's ban cannot see this inside the folders themselves."""
    wrong = []
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    modules = [node.module or ""]
                wrong += [f"{path}: {name}" for name in modules if name.split(".")[0] in FOLDERS.values()]
    assert wrong == []
