"""What is installed is the whole package and nothing else; built once, in a copy, from what is in the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import zmpsl

ROOT = Path(__file__).parents[2]
# Where the packages of the repository lie, and how they are called once installed.
HOMES = {"zmpsl": "zmpsl", "models": "zmpsl/models"}


def sources() -> dict[str, Path]:
    """Every Python file that must be installed, by its path in the wheel."""
    found = {}
    for home, name in HOMES.items():
        for path in sorted((ROOT / home).rglob("*.py")):
            found[f"{name}/{path.relative_to(ROOT / home).as_posix()}"] = path
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and source distribution, made by the build backend itself in a copy of the tree."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the package is tested without its repository")
    copy = tmp_path_factory.mktemp("copy") / "tree"
    unwanted = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    out = tmp_path_factory.mktemp("dist")
    code = f"from setuptools import build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    """The wheel, opened."""
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    """What the wheel says of itself."""
    (name,) = (each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile):
    """A room that setup.py forgets would be missing only after an installation; a stray one would shadow others."""
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith(".so")}
    assert inside == {*sources(), "zmpsl/py.typed", "zmpsl/_codecs.pyi"}
    assert "zmpsl/models/__init__.py" in inside
    assert all(wheel.read(name) == path.read_bytes() for name, path in sources().items())


def test_every_folder_with_modules_is_a_package(wheel: zipfile.ZipFile):
    """A folder without __init__.py is not found by setuptools' package list."""
    names = set(wheel.namelist())
    folders = {name.rpartition("/")[0] for name in sources()}
    assert [folder for folder in folders if f"{folder}/__init__.py" not in names] == []
    assert {name.split("/")[0] for name in names} == {"zmpsl", f"zmpsl-{zmpsl.__version__}.dist-info"}


def test_wheel_runs_without_the_repository(wheel: zipfile.ZipFile, tmp_path: Path):
    """Unpacked somewhere else, in a process that does not know this tree, all modules load."""
    wheel.extractall(tmp_path)
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources()]
    wanted = [name for name in modules if not name.endswith("__main__")]
    code = (
        "import sys, importlib; sys.path[:0] = [sys.argv[1]]\n"
        "import zmpsl; assert zmpsl.__file__.startswith(sys.argv[1]), zmpsl.__file__\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "assert not {'models', 'tests', 'bench'} & set(sys.modules)\n"
        "from zmpsl.cli import main; main(['--version'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path), *wanted],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"zmpsl, version {zmpsl.__version__}"


def test_metadata(wheel: zipfile.ZipFile):
    """Name, version, command and extras; the versions in code and setup.py are one."""
    about = metadata(wheel)
    assert about["Name"] == "zmpsl"
    assert about["Version"] == zmpsl.__version__
    assert about["Requires-Python"] == ">=3.11"
    required = about.get_all("Requires-Dist") or []
    plain = {each.split(">")[0] for each in required if "extra ==" not in each}
    assert plain == {"click", "lz4", "msgspec", "numpy", "pyzmq", "PyYAML", "safetensors", "xxhash"}
    assert {"train", "manager", "digits", "secure", "report", "dev"} <= set(about.get_all("Provides-Extra") or [])
    (entry,) = (each for each in wheel.namelist() if each.endswith("entry_points.txt"))
    assert "zmpsl = zmpsl.cli:main" in wheel.read(entry).decode()


def test_source_distribution_can_be_built_again(built: Path):
    """It holds all that setup.py reads and installs."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "README.md", "zmpsl/py.typed"}
    assert needed <= inside
    assert {path.relative_to(ROOT).as_posix() for path in sources().values()} <= inside


def test_build_system_is_declared():
    """Without it old versions of pip install zmpsl without its models."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["build-system"]["build-backend"] == "setuptools.build_meta"
