"""One wheel for every Python from 3.11 on, and a package that works where no compiler was.

The wheel is built once and tried under every Python that is there: `python3.11` to `python3.14` in PATH, and those that
`ZMPSL_PYTHONS` names, with `:` between. Each needs NumPy for the kernels' golden digests; without, only the import of
the extension is tried. `python -m pytest -m cross -k python`
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = [f"3.{minor}" for minor in range(11, 15)]
UNWANTED = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "*.so")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

# A tree that is installed for development is found for modules that the unpacked wheel has not: away with its finder.
ALONE = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "sys.meta_path[:] = [each for each in sys.meta_path if 'Editable' not in getattr(each, '__name__', '')]\n"
)

# What each Python does with the unpacked wheel: encode, decode, digests of all encodings.
TRIAL = """
import hashlib, importlib, importlib.util, json, sys
sys.path[:0] = sys.argv[1:3]
kernels = importlib.import_module("zmpsl._codecs")
told = {"python": sys.version.split()[0], "isa": kernels.ISA, "file": kernels.__file__, "digests": None}
if importlib.util.find_spec("numpy"):
    import numpy as np
    from codec_samples import STEP, samples
    told["digests"] = {}
    for name in ("bf16", "int8", "int4", "bitmap", "bytes", "huff", "bf16_huff", "qz"):
        encode, decode, bound = (getattr(kernels, f"{name}_{end}") for end in ("encode_into", "decode_into", "bound"))
        digest = hashlib.blake2b(digest_size=8)
        for values in samples(70001).values():
            room = np.zeros(bound(values.nbytes if name == "bytes" else values.size), np.uint8)
            size = encode(values, room, *((STEP,) if name == "qz" else ()))
            digest.update(room[:size])
            back = np.zeros_like(values)
            assert decode(room[:size], back) == values.nbytes
            assert name not in ("bitmap", "bytes", "huff") or back.tobytes() == values.tobytes()
        told["digests"][name] = digest.hexdigest()
print(json.dumps(told))
"""


def build(folder: Path, **environment: str) -> Path:
    """Builds a wheel in a copy of the tree, with the build backend itself, and gives its path."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the package is tested without its repository")
    shutil.copytree(ROOT, folder / "tree", ignore=UNWANTED)
    (folder / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder / "dist")],
        cwd=folder / "tree", capture_output=True, text=True, timeout=150, check=False,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with a compiler."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler here to build the kernels with")
    return build(tmp_path_factory.mktemp("with"))


def python_of(version: str) -> str:
    """The interpreter of that version, in ZMPSL_PYTHONS or in PATH."""
    named = [path for path in os.environ.get("ZMPSL_PYTHONS", "").split(":") if path]
    for path in [*named, shutil.which(f"python{version}"), sys.executable]:
        if path and version_of(path) == version:
            return path
    pytest.skip(f"no Python {version}: python{version} is not in PATH, nor one named by $ZMPSL_PYTHONS")


def version_of(python: str) -> str:
    """3.12, say; nothing where it cannot run, such as a version manager's stand-in for a version that is not chosen."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False).stdout.strip()


def asked(python: str, code: str, *arguments: str, **environment: str) -> str:
    """What a Python prints."""
    done = subprocess.run(
        [python, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cross
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_under_python(version: str, wheel: Path, tmp_path: Path) -> None:
    from codec_samples import GOLDEN

    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", wheel.name)
    python = python_of(version)
    zipfile.ZipFile(wheel).extractall(tmp_path)
    told = json.loads(asked(python, TRIAL, str(tmp_path), str(ROOT / "tests" / "codecs")))
    assert told["python"].startswith(version)
    assert told["file"] == str(tmp_path / "zmpsl" / "_codecs.abi3.so")
    if told["digests"] is None:
        pytest.skip(f"{python} has no NumPy: the extension was imported ({told['isa']}), its digests were not compared")
    assert told["digests"] == GOLDEN


def test_without_a_compiler_the_package_works_on_the_twins_and_says_so(tmp_path: Path) -> None:
    made = build(tmp_path, CC="no-such-compiler")
    names = zipfile.ZipFile(made).namelist()
    assert "zmpsl/kernels/twins.py" in names
    assert not any(name.endswith(".so") for name in names)
    zipfile.ZipFile(made).extractall(tmp_path / "site")
    code = (
        ALONE + "import numpy as np, zmpsl\n"
        "from zmpsl.codecs import by_name\n"
        "from zmpsl.kernels import KERNELS\n"
        "chunk = np.maximum(np.arange(-500, 500, dtype=np.float32), 0)\n"
        "back = np.zeros(chunk.nbytes, np.uint8)\n"
        "by_name('huff').unpack_into(memoryview(by_name('huff').pack(chunk.view(np.uint8).data)), back)\n"
        "assert back.tobytes() == chunk.tobytes() and zmpsl.__file__.startswith(sys.argv[1])\n"
        "print(KERNELS.isa)"
    )
    assert asked(sys.executable, code, str(tmp_path / "site")) == "numpy\n"
    doctor = ALONE + (
        "sys.argv[:] = ['zmpsl']\nfrom zmpsl.cli import main\n"
        "try: main(['doctor'])\nexcept SystemExit: pass"  # whatever else it finds here
    )
    assert "not built: codecs run in NumPy" in asked(sys.executable, doctor, str(tmp_path / "site"))
