"""Package description of zmpsl: the only place that knows folders, dependencies and extras."""

from glob import glob

from setuptools import Extension, setup

ROOMS = [
    "cli",
    "data",
    "engine",
    "job",
    "kernels",
    "launch",
    "loops",
    "observe",
    "planner",
    "pool",
    "roles",
    "transport",
    "trials",
]

# The kernels behind zmpsl.kernels. Optional: without a compiler the NumPy twins do the same, more slowly.
CODECS = Extension(
    "zmpsl._codecs",
    sources=sorted(glob("codecs/*.c")),
    depends=sorted(glob("codecs/*.h") + glob("codecs/kernels/*.h")),
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    # Without contraction of a * b + c the bytes are the same on every machine.
    extra_compile_args=["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-Werror=implicit-function-declaration"],
    py_limited_api=True,
    optional=True,
)

setup(
    name="zmpsl",
    version="0.1.0",
    description="Multihop parallel split learning over ZeroMQ: train one model over devices too small to hold it.",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=["zmpsl", *(f"zmpsl.{room}" for room in ROOMS), "zmpsl.models"],
    # `models/` stands at the top level of the repository and is installed as zmpsl.models.
    package_dir={"zmpsl": "zmpsl", "zmpsl.models": "models"},
    package_data={"zmpsl": ["py.typed", "_codecs.pyi"]},
    ext_modules=[CODECS],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    install_requires=[
        "click>=8.1",
        "lz4>=4.3",
        "msgspec>=0.19",
        "numpy>=1.26",
        "pyzmq>=26.4",
        "PyYAML>=6",
        "safetensors>=0.5",
        "xxhash>=3.4",
    ],
    extras_require={
        "train": ["torch>=2.4"],  # data owners and compute nodes
        # The solver, 600 MB unpacked, and the simulator.
        "manager": ["mip>=1.17,<3; platform_machine in 'x86_64 aarch64 arm64 AMD64'", "simpy>=4"],
        "digits": ["scikit-learn>=1.4"],  # the data of the built-in job
        "secure": ["cryptography>=42"],  # data owners, where a job has privacy.secure_average
        "report": ["matplotlib>=3.8", "rich>=13"],  # HTML report and live progress
        "dev": [
            "cryptography>=42",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "psutil>=5.9",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "types-PyYAML",
        ],
        "bench": ["grpcio>=1.60", "psutil>=5.9", "scikit-learn>=1.4", "Pillow>=10"],
        "rivals": ["blosc2>=3", "zstandard>=0.22"],  # what bench/codec.py and `zmpsl bench codec` show beside ours
    },
    entry_points={"console_scripts": ["zmpsl=zmpsl.cli:main"]},
    classifiers=["Programming Language :: Python :: 3", "Operating System :: POSIX :: Linux", "Typing :: Typed"],
)
