"""Optional: the kernels built for ARM and run under an emulator give the same bytes as here.

Needs a cross compiler with a static C library and a user-space emulator of QEMU. Those in PATH are found by their usual
names; others are named as command lines:

    ZMPSL_CC_AARCH64="aarch64-linux-gnu-gcc-12 --sysroot=DIR"  ZMPSL_RUN_AARCH64="qemu-aarch64-static"
    ZMPSL_CC_ARMV7="arm-linux-gnueabihf-gcc"                   ZMPSL_RUN_ARMV7="qemu-arm-static"
    python -m pytest -m cross
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from codec_samples import GOLDEN, GOLDEN_RELATED, STEP, canonical, related, samples

from zmpsl.kernels import NAMES, gather, twins

pytestmark = pytest.mark.cross

CODECS = Path(__file__).parents[2] / "codecs"
SIZE = 70001  # as GOLDEN says
CASES = "20000"
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-static"]


class Machine(NamedTuple):
    """Where the kernels are tried: variables' ending, usual commands, and the sets of kernels that must run there."""

    name: str
    compiler: str
    emulators: tuple[str, ...]
    sets: tuple[str, ...]


MACHINES = [
    Machine("AARCH64", "aarch64-linux-gnu-gcc", ("qemu-aarch64", "qemu-aarch64-static"), ("portable", "neon")),
    Machine("ARMV7", "arm-linux-gnueabihf-gcc", ("qemu-arm", "qemu-arm-static"), ("portable",)),
]


def command(variable: str, names: tuple[str, ...]) -> list[str]:
    """The command line that a variable says, or the first of these programs that is in PATH."""
    given = shlex.split(os.environ.get(variable, ""))
    found = given or [path for path in map(shutil.which, names) if path][:1]
    if not found:
        pytest.skip(f"neither ${variable} nor {' or '.join(names)} in PATH")
    return found


@functools.cache
def built(machine: Machine, program: str, folder: Path) -> list[str]:
    """The command that runs one of the programs beside the kernels under the emulator."""
    compiler = command(f"ZMPSL_CC_{machine.name}", (machine.compiler,))
    emulator = command(f"ZMPSL_RUN_{machine.name}", machine.emulators)
    sources = [CODECS / "pick.c", *sorted(CODECS.glob("isa_*.c")), CODECS / "fuzz" / f"{program}.c"]
    done = subprocess.run(
        [*compiler, *FLAGS, *map(str, sources), "-o", str(folder / program)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [*emulator, str(folder / program)]


@pytest.fixture(scope="module", params=MACHINES, ids=lambda machine: machine.name.lower())
def machine(request: pytest.FixtureRequest) -> Machine:
    return request.param


@pytest.fixture(scope="module")
def folder(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(machine.name)


@pytest.mark.parametrize(("make", "golden"), [(samples, GOLDEN), (related, GOLDEN_RELATED)])
def test_golden_digests_and_decoded_values(
    machine: Machine, folder: Path, make: Callable[[int], dict[str, np.ndarray]], golden: dict[str, str]
) -> None:
    program = built(machine, "golden", folder)
    tensors = list(make(SIZE).values())
    given = b"".join(struct.pack("<I", SIZE) + values.tobytes() for values in tensors)
    twin = gather(twins)
    for isa in machine.sets:
        done = subprocess.run([*program, isa, str(STEP)], input=given, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        digests = {name: hashlib.blake2b(digest_size=8) for name in NAMES}
        data = memoryview(done.stdout)
        for values in tensors:
            for name in NAMES:
                status, size = struct.unpack_from("<iI", data)
                encoding, decoded = data[8 : 8 + size], data[8 + size : 8 + size + values.nbytes]
                data = data[8 + size + values.nbytes :]
                digests[name].update(encoding)
                assert status == 0
                expected = values.copy()
                twin.formats[name].decode_into(encoding, expected)
                assert canonical(np.frombuffer(decoded, np.float32)) == canonical(expected), (isa, name)
            sums, rests = np.zeros(SIZE), np.zeros(SIZE)
            twin.add_into(values, 5, sums, rests.copy())
            twin.add_into(values[1:], 7, sums[:-1], rests[:-1])
            found = np.frombuffer(data[: 16 * SIZE], np.float64)
            data = data[16 * SIZE :]
            np.testing.assert_array_equal(found, np.concatenate([sums, rests]), isa)
        assert not data
        assert {name: digest.hexdigest() for name, digest in digests.items()} == golden, isa


def test_mutated_encodings_meet_the_same_verdicts(machine: Machine, folder: Path, tmp_path: Path) -> None:
    """The fuzzer's digest is over all encodings, verdicts and results."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no compiler for this machine to compare with")
    here = [str(tmp_path / "mutate")]
    sources = [CODECS / "pick.c", *sorted(CODECS.glob("isa_*.c")), CODECS / "fuzz" / "mutate.c"]
    subprocess.run([compiler, "-std=c11", "-O2", "-ffp-contract=off", *map(str, sources), "-o", *here], check=True)
    found = {}
    for place, program in (("here", here), ("there", built(machine, "mutate", folder))):
        done = subprocess.run([*program, CASES, "3"], capture_output=True, text=True, timeout=150, check=True)
        found[place] = dict(re.findall(r"^(\w+) .* digest (\w+)$", done.stdout, re.MULTILINE))
    assert set(found["there"]) == set(machine.sets)
    assert len({*found["here"].values(), *found["there"].values()}) == 1, found
