"""The shape of the source: imports point one way, heavy libraries stay in their rooms, nothing reads code as data."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up. A module may import what stands below it or beside it in its own line, never what stands above.
PURE_TRANSPORT = (
    "address", "allocator", "mask", "task", "damage", "tcp_info", "wire", "buffers", "assembly", "choice", "packing",
    "outbox", "envelope", "quota",
)  # fmt: skip
LAYERS = [
    ["zmpsl", "zmpsl.errors", "zmpsl.randomness", "zmpsl.models", "zmpsl.whole_file", "zmpsl.descriptors"],
    ["zmpsl.job", "zmpsl.keys"],
    ["zmpsl.plan", "zmpsl.profiles"],
    ["zmpsl.kernels"],
    ["zmpsl.codecs", "zmpsl.state"],
    ["zmpsl.packed_state", "zmpsl.masking"],
    ["zmpsl.pool"],
    ["zmpsl.stats"],
    ["zmpsl.messages"],
    ["zmpsl.transport", *(f"zmpsl.transport.{name}" for name in PURE_TRANSPORT)],
    ["zmpsl.transport.curve", "zmpsl.transport.sockets", "zmpsl.norms"],
    ["zmpsl.transport.link", "zmpsl.transport.control", "zmpsl.transport.shaping"],
    ["zmpsl.trials"],
    ["zmpsl.data", "zmpsl.engine", "zmpsl.observe", "zmpsl.checkpoint", "zmpsl.planner"],
    ["zmpsl.roles"],
    ["zmpsl.security"],
    ["zmpsl.loops", "zmpsl.submit"],
    ["zmpsl.launch"],
    ["zmpsl.doctor"],
    ["zmpsl.cli"],
    ["zmpsl.__main__"],
]
ZMQ_USERS = {
    *(f"zmpsl.transport.{name}" for name in ("curve", "sockets", "link", "control")),
    *(f"zmpsl.loops.{name}" for name in ("member", "manager", "crowd")),
    *("zmpsl.submit", "zmpsl.doctor", "zmpsl.trials.link"),
}
# Where torch may be imported when a module is loaded, and where only inside a function. launch.preload loads it early
# on purpose, in a process that will train.
TORCH_ROOMS = (
    *("zmpsl.engine", "zmpsl.models", "zmpsl.launch.preload"),
    *("zmpsl.roles.owner", "zmpsl.roles.compute", "zmpsl.roles.thin"),
)
TORCH_INSIDE = ("zmpsl.roles.member",)
# Rooms of the same layer: the first of each pair must not import the second.
APART = [
    *(("zmpsl.data", f"zmpsl.{room}") for room in ("engine", "observe", "checkpoint", "planner")),
    *(("zmpsl.observe", f"zmpsl.{room}") for room in ("engine", "data", "checkpoint", "planner")),
    *(("zmpsl.engine", f"zmpsl.{room}") for room in ("observe", "checkpoint", "planner")),
    *(("zmpsl.checkpoint", f"zmpsl.{room}") for room in ("engine", "data", "observe", "planner")),
    *(("zmpsl.state", "zmpsl.codecs"), ("zmpsl.codecs", "zmpsl.state")),
]


@cache
def sources() -> dict[str, Path]:
    """Every module of the package by name; the folder models/ is zmpsl.models."""
    found = {}
    for path in [*ROOT.glob("zmpsl/**/*.py"), *ROOT.glob("models/**/*.py")]:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        parts = parts if parts[0] == "zmpsl" else ["zmpsl", *parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def is_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(module: str, node: ast.AST, *, inside: bool, typing: bool) -> Iterator[str]:
    """Full names of what is imported, with or without imports inside functions and those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = module.split(".") if sources()[module].name == "__init__.py" else module.split(".")[:-1]
            start = ".".join(base[: len(base) - child.level + 1]) if child.level else ""
            source = ".".join(filter(None, [start, child.module]))
            yield source
            yield from (f"{source}.{alias.name}" for alias in child.names if f"{source}.{alias.name}" in sources())
        elif is_typing_only(child) and not typing:
            continue
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside:
            continue
        else:
            yield from imports(module, child, inside=inside, typing=typing)


@cache
def everything_imported(module: str) -> set[str]:
    return set(imports(module, tree(module), inside=True, typing=True))


@cache
def imported_at_load(module: str) -> set[str]:
    return set(imports(module, tree(module), inside=False, typing=False))


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def layer(module: str) -> int:
    """The layer of the longest entry that is the module or a room around it."""
    entries = [(len(entry), number) for number, names in enumerate(LAYERS) for entry in names if is_in(module, entry)]
    _, number = max(entry for entry in entries if entry[0] > len("zmpsl") or module == "zmpsl")
    return number


class TestImports:
    def test_all_modules_were_found(self) -> None:
        assert {"zmpsl", "zmpsl.transport.wire", "zmpsl.models", "zmpsl.models.lenet", "zmpsl.engine.replica"} <= set(
            sources()
        )
        assert len(sources()) > 50

    def test_imports_of_every_kind_are_seen(self) -> None:
        assert "zmpsl.models.lenet" in everything_imported("zmpsl.models")  # relative
        assert "zmpsl.loops.member" in everything_imported("zmpsl.cli.roles")  # inside a function
        assert "zmpsl.loops.member" not in imported_at_load("zmpsl.cli.roles")
        assert "zmpsl.observe.plots" in imported_at_load("zmpsl.observe.report")  # from a package
        assert "matplotlib.figure" in everything_imported("zmpsl.observe.plots")  # for type checkers
        assert "matplotlib.figure" not in imported_at_load("zmpsl.observe.plots")

    def test_a_module_stands_where_its_nearest_room_stands(self) -> None:
        order = [
            "errors",
            "job.load",
            "plan",
            "state",
            "messages",
            "transport.wire",
            "transport.link",
            "engine.replica",
        ]
        order += ["roles.owner", "loops.member", "launch.local", "cli"]
        numbers = [layer(f"zmpsl.{name}") for name in order]
        assert numbers == sorted(set(numbers))

    def test_every_module_has_a_layer(self) -> None:
        listed = [entry for names in LAYERS for entry in names if entry != "zmpsl"]
        homeless = [
            module for module in sources() if module != "zmpsl" and not any(is_in(module, entry) for entry in listed)
        ]
        assert homeless == [], "say in LAYERS where these stand"

    def test_imports_point_downwards(self) -> None:
        upwards = [
            f"{module} imports {target}"
            for module in sources()
            for target in everything_imported(module)
            if is_in(target, "zmpsl") and target in sources() and layer(target) > layer(module)
        ]
        assert upwards == []

    def test_rooms_side_by_side_do_not_know_each_other(self) -> None:
        crossing = [
            f"{module} imports {target}"
            for one, other in APART
            for module in sources()
            for target in everything_imported(module)
            if is_in(module, one) and is_in(target, other)
        ]
        assert crossing == []

    def test_models_know_torch_and_nothing_of_zmpsl(self) -> None:
        foreign = [
            f"{module} imports {target}"
            for module in sources()
            if is_in(module, "zmpsl.models")
            for target in everything_imported(module)
            if not is_in(target, "zmpsl.models") and target.split(".")[0] not in {"torch", *sys.stdlib_module_names}
        ]
        assert foreign == []

    def test_only_these_modules_touch_zmq(self) -> None:
        assert {
            module for module in sources() if any(is_in(t, "zmq") for t in everything_imported(module))
        } == ZMQ_USERS

    def test_cryptography_is_imported_where_parts_are_masked_and_only_then(self) -> None:
        def users(imported: Callable[[str], set[str]]) -> list[str]:
            return [module for module in sources() if any(is_in(name, "cryptography") for name in imported(module))]

        assert users(everything_imported) == ["zmpsl.masking"]
        assert users(imported_at_load) == []

    def test_torch_is_imported_only_where_models_are_built_and_trained(self) -> None:
        at_load = {module for module in sources() if any(is_in(target, "torch") for target in imported_at_load(module))}
        assert [module for module in sorted(at_load) if not any(is_in(module, room) for room in TORCH_ROOMS)] == []
        inside = {
            module
            for module in sources()
            if any(is_in(target, "torch") for target in imports(module, tree(module), inside=True, typing=False))
        }
        assert [module for module in sorted(inside - at_load) if module not in TORCH_INSIDE] == []

    def test_mip_is_imported_only_inside_functions_of_the_planner(self) -> None:
        users = {module for module in sources() if any(is_in(target, "mip") for target in everything_imported(module))}
        assert [module for module in sorted(users) if not is_in(module, "zmpsl.planner")] == []
        assert [
            module for module in sources() if any(is_in(target, "mip") for target in imported_at_load(module))
        ] == []

    def test_click_is_imported_only_by_the_command_line(self) -> None:
        users = {
            module for module in sources() if any(is_in(target, "click") for target in everything_imported(module))
        }
        assert {module for module in users if not is_in(module, "zmpsl.cli")} == set()


class TestLoading:
    @pytest.mark.parametrize(
        ("modules", "unwanted"),
        [
            ("zmpsl.roles.manager, zmpsl.loops.manager, zmpsl.roles.aggregator", {"torch", "mip", "matplotlib"}),
            ("zmpsl.roles.aggregator, zmpsl.loops.member, zmpsl.submit", {"torch", "mip", "matplotlib", "sklearn"}),
            ("zmpsl.roles.compute, zmpsl.roles.owner", {"zmq", "mip", "matplotlib", "sklearn"}),
            ("zmpsl.cli", {"torch", "zmq", "numpy", "mip", "matplotlib", "msgspec", "yaml"}),
            ("zmpsl", {"torch", "zmq", "numpy", "mip", "msgspec"}),
            ("zmpsl.transport.wire, zmpsl.codecs, zmpsl.state, zmpsl.messages", {"torch", "zmq", "mip"}),
        ],
    )
    def test_a_fresh_process_loads_only_what_it_needs(self, modules: str, unwanted: set[str], tmp_path: Path) -> None:
        code = f"import sys, {modules}\nprint(*sorted({unwanted!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


# Calls and imports that turn bytes or text into code, or hide what is loaded.
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MEMBERS = {
    ("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("np", "save"), ("numpy", "save"),
    ("yaml", "load"), ("yaml", "load_all"), ("yaml", "full_load"), ("yaml", "unsafe_load"),
    ("os", "system"), ("os", "popen"), *(("builtins", name) for name in FORBIDDEN_NAMES),
}  # fmt: skip
FORBIDDEN_METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized"}
FORBIDDEN_KEYWORDS = {"allow_pickle", "shell"}


def forbidden(code: ast.AST) -> Iterator[str]:
    """What of the above a piece of code uses."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
                yield f"from {node.module}"
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if (node.module, alias.name) in FORBIDDEN_MEMBERS
            )
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in FORBIDDEN_METHODS or (owner, node.attr) in FORBIDDEN_MEMBERS:
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_KEYWORDS:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield f"{node.arg}="
        elif isinstance(node, ast.Constant) and node.value in FORBIDDEN_MODULES:
            yield repr(node.value)  # for importlib.import_module


class TestSafety:
    @pytest.mark.parametrize(
        "code",
        [
            *(
                "import pickle",
                "import os, dill.temp",
                "from pickle import loads",
                "from torch import load",
                "from yaml import load",
            ),
            *(
                "torch.load(f)",
                "np.load(f)",
                "numpy.load(f)",
                "x = yaml.load",
                "yaml.unsafe_load(f)",
                "eval('1')",
                "exec(code)",
            ),
            *(
                "socket.recv_pyobj()",
                "self.pull.recv_pyobj",
                "builtins.eval(x)",
                "f(allow_pickle=True)",
                "import_module('pickle')",
            ),
            *("map(eval, x)", "def f():\n import marshal", "run(x, shell=True)", "__import__(x)"),
        ],
    )
    def test_the_search_finds_what_it_looks_for(self, code: str) -> None:
        assert list(forbidden(ast.parse(code)))

    @pytest.mark.parametrize(
        "code",
        [
            "model.eval()",
            "block.eval()(x)",
            "import pickletools",
            "re.compile(x)",
            "yaml.safe_load(x)",
            "f(allow_pickle=False)",
            "'eval'",
        ],
    )
    def test_the_search_passes_what_only_looks_like_it(self, code: str) -> None:
        assert not list(forbidden(ast.parse(code)))

    def test_nothing_turns_bytes_or_text_into_code(self) -> None:
        assert {module: found for module in sources() if (found := list(forbidden(tree(module))))} == {}

    def test_no_input_is_checked_by_assert(self) -> None:
        # `python -O` takes them out.
        asserting = {
            module for module in sources() if any(isinstance(node, ast.Assert) for node in ast.walk(tree(module)))
        }
        assert asserting == set()


class TestForm:
    def test_every_module_says_in_its_first_line_what_it_is_for(self) -> None:
        mute = [
            module
            for module in sources()
            if not (ast.get_docstring(tree(module), clean=False) or "").split("\n")[0].strip()
        ]
        assert mute == []

    def test_every_name_in_all_exists(self) -> None:
        missing = []
        for name in sources():
            if name != "zmpsl.__main__":
                module = importlib.import_module(name)
                names = getattr(module, "__all__", [])
                missing += [f"{name}.{each}" for each in names if not hasattr(module, each)]
                missing += [f"{name}.{each} twice" for each in set(names) if names.count(each) > 1]
        assert missing == []

    def test_no_file_is_longer_than_400_lines(self) -> None:
        paths = [
            path
            for room in ("zmpsl", "models", "codecs", "bench", "tests")
            for path in ROOT.glob(f"{room}/**/*.[pc]*")
            if path.suffix in (".py", ".c")
        ]
        lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
        assert len(lengths) > 60
        assert {path: length for path, length in lengths.items() if length > 400} == {}

    def test_no_test_is_taken_from_another(self) -> None:
        """What two of them need has a file of its own, named after what it is."""
        files = list(ROOT.glob("tests/**/*.py"))
        assert len(files) > 100
        taken = re.compile(r"^\s*(?:from|import) test_\w+", re.M)
        assert [str(path) for path in files if taken.search(path.read_text(encoding="utf-8"))] == []
        names = [path.name for path in files if path.name != "conftest.py"]
        assert len(names) == len(set(names))

    def test_the_installed_package_has_every_folder(self) -> None:
        # A folder that setup.py does not list is missing from the wheel, and only there.
        folders = {module for module, path in sources().items() if path.name == "__init__.py"}
        calls = [
            node
            for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
            if isinstance(node, ast.List | ast.Tuple)
        ]
        rooms = {f"zmpsl.{item.value}" for node in calls for item in node.elts if isinstance(item, ast.Constant)}
        assert folders - rooms - {"zmpsl", "zmpsl.models"} == set()
