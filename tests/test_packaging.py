"""What is installed, and under which names."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "cells": "cellport/cells",
    "export": "cellport/export",
    "serve": "cellport/serve",
    "protos": "cellport/protos",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel that is built from a source distribution."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def sources() -> list[tuple[Path, str]]:
    """Every source file, and its name in an installed package."""
    found = []
    for folder, package in {**FOLDERS, "src/cellport": "cellport"}.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".pyi", ".proto", ".typed") or path.name == "py.typed":
                found.append((path, f"{package}/{path.relative_to(ROOT / folder)}"))
    return found


def test_the_only_top_level_name_is_cellport(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"cellport"}
    assert {name.split("/")[0] for name in wheel if not name.split("/")[0].endswith(".dist-info")} == {"cellport"}


def test_every_source_file_is_in_the_wheel(wheel: list[str]) -> None:
    names = [name for _, name in sources()]
    assert len(names) > 60
    assert [name for name in names if name not in wheel] == []


def test_the_folders_are_imported_by_their_package_names_only() -> None:
    """ruff's ban cannot see this inside the folders themselves."""
    wrong = []
    for path, _ in sources():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    modules = [node.module or ""]
                wrong += [f"{path}: {module}" for module in modules if module.split(".")[0] in FOLDERS]
    assert wrong == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cellport.manifest, cellport.errors, cellport.cli", ["torch", "onnx", "onnxruntime", "grpc"]),
        ("from cellport.serve import Client, AsyncClient", ["torch", "onnx", "onnxruntime", "uvloop"]),
        ("from cellport.serve import Server, Engine", ["torch", "onnx", "onnxscript"]),
        ("import cellport.cells", ["numba", "onnx", "onnxscript", "onnxruntime", "grpc"]),
        ("import cellport.export", ["torch", "onnx", "onnxruntime"]),
        ("from cellport.export import to_onnx", ["grpc", "cellport.serve"]),
    ],
)
def test_importing_a_part_imports_no_more_than_it_needs(statement: str, absent: list[str]) -> None:
    code = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == "[]"
