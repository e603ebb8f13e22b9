"""The job's fields with their defaults, limits and one-line descriptions; docs/job.md is generated from here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from zmpsl.job.emulation import Emulate
from zmpsl.job.guard import Guard
from zmpsl.job.network import Network, Recover
from zmpsl.job.planning import Planning
from zmpsl.job.privacy import Privacy
from zmpsl.job.settings import Settings

__all__ = [
    "MEMORY_PATTERN", "Codec", "Data", "Emulate", "Evaluate", "Guard", "Job", "LearningRate", "Model", "Network",
    "Optimizer", "Partition", "Planning", "Privacy", "Recover", "Train",
]  # fmt: skip

# The plan travels with every message as 32-bit numbers and owner lists; these limits keep it so.
MAX_OWNERS = 65_535
MAX_NODES = 255

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
# zmpsl.pool.budget reads it.
MEMORY_PATTERN = r"^[0-9]+([.][0-9]+)? ?(%|B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)$"


class Model(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network, as a list of atomic blocks."""

    name: Annotated[
        str,
        Meta(
            description=(
                "a model of the zoo (`zmpsl models` lists them) or `module:function` giving nn.Modules, best as a"
                " generator"
            )
        ),
    ] = "digits_cnn"
    args: Annotated[dict[str, Any], Meta(description="keyword arguments of the model's function")] = field(
        default_factory=dict
    )


class Partition(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one data set is dealt out to the data owners."""

    kind: Annotated[
        Literal["iid", "dirichlet", "shards", "sizes", "own"],
        Meta(
            description=(
                "`iid` equal random shares; `dirichlet` skewed labels; `shards` few labels per owner; `sizes` unequal"
                " random shares; `own` nothing is dealt out, each owner has all that its data folder holds"
            )
        ),
    ] = "iid"
    alpha: Annotated[float, Meta(gt=0, description="dirichlet: the smaller, the more skewed")] = 0.5
    shards_per_owner: Annotated[Count, Meta(description="shards: label-sorted pieces each owner gets")] = 2
    sizes: Annotated[
        list[Annotated[float, Meta(gt=0)]] | None,
        Meta(description="sizes: relative share of each owner, one number per owner"),
    ] = None
    min_samples: Annotated[Count, Meta(description="dirichlet: draw again until every owner has this many samples")] = 1


class Data(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the owners train on."""

    name: Annotated[
        str,
        Meta(
            description=(
                "`digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `text`, `synthetic`, or `module:function`"
            )
        ),
    ] = "digits"
    dir: Annotated[
        str | None, Meta(description="folder with the data files; each owner may give its own with `--data-dir`")
    ] = None
    download: Annotated[bool, Meta(description="fetch a public data set into `dir` when it is not there")] = False
    args: Annotated[
        dict[str, Any], Meta(description="further arguments of the data set, such as `context` for text or `limit`")
    ] = field(default_factory=dict)
    partition: Annotated[Partition, Meta(description="how the training samples are dealt out to the owners")] = (
        Partition()
    )
    augment: Annotated[
        Literal["none", "crop-flip"], Meta(description="`crop-flip`: pad 4, random crop, random horizontal flip")
    ] = "none"


class Train(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rounds, epochs and batches."""

    rounds: Annotated[Count, Meta(description="global epochs; each ends with FedAvg")] = 3
    local_epochs: Annotated[Count, Meta(description="passes over an owner's data in one round (the paper's r)")] = 2
    batch_size: Annotated[Count, Meta(description="samples per batch; one optimiser step each")] = 32
    micro_batches: Annotated[
        Literal["auto"] | Annotated[int, Meta(ge=1, le=65535)],
        Meta(
            description=(
                "pieces a batch is cut into so that one owner alone can fill the chain; `auto`: as many as make a round"
                " the shortest by what was measured, decided once, before the first round"
            )
        ),
    ] = 1
    schedule: Annotated[
        Literal["gpipe", "1f1b"],
        Meta(
            description=(
                "`gpipe`: all micro-batches of a batch enter at once; `1f1b`: at most as many as there are parts are"
                " under way"
            )
        ),
    ] = "1f1b"
    drop_last: Annotated[bool, Meta(description="leave out a last batch that is shorter than batch_size")] = False
    max_batches: Annotated[
        Count | None, Meta(description="stop a local epoch after this many batches (for short trials)")
    ] = None

    @property
    def pieces(self) -> int:
        """Micro-batches of a batch, one where that is still to be decided: whole batches are measured for it."""
        return 1 if self.micro_batches == "auto" else self.micro_batches


class LearningRate(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The learning rate and how it changes from round to round."""

    initial: Annotated[float, Meta(gt=0, description="learning rate of round 0")] = 0.05
    schedule: Annotated[
        Literal["constant", "step", "cosine", "exponential"],
        Meta(
            description=(
                "`step`: times gamma every step_rounds; `cosine`: half a cosine from initial towards 0;"
                " `exponential`: times gamma every round"
            )
        ),
    ] = "constant"
    gamma: Annotated[float, Meta(gt=0, le=1, description="factor of `step` and `exponential`")] = 0.1
    step_rounds: Annotated[Count, Meta(description="rounds between two steps of `step`")] = 10


class Optimizer(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The optimiser that every replica and owner runs."""

    name: Annotated[Literal["sgd", "adam"], Meta(description="torch.optim.SGD or torch.optim.Adam")] = "sgd"
    lr: Annotated[LearningRate, Meta(description="learning rate")] = LearningRate()
    momentum: Annotated[Annotated[float, Meta(ge=0, lt=1)], Meta(description="sgd: momentum")] = 0.9
    weight_decay: Annotated[Annotated[float, Meta(ge=0)], Meta(description="L2 penalty, as in torch.optim")] = 1e-4
    beta1: Annotated[Annotated[float, Meta(ge=0, lt=1)], Meta(description="adam: decay of the first moment")] = 0.9
    beta2: Annotated[Annotated[float, Meta(ge=0, lt=1)], Meta(description="adam: decay of the second moment")] = 0.999
    eps: Annotated[Annotated[float, Meta(gt=0)], Meta(description="adam: term added to the denominator")] = 1e-8
    state: Annotated[
        Literal["reset", "average", "keep"],
        Meta(
            description=(
                "at a round's end: `reset` optimiser state to zero, `average` it with the weights of FedAvg, or `keep`"
                " each owner's for its next round, on disk"
            )
        ),
    ] = "reset"

    @property
    def keeps(self) -> bool:
        """True where there is a state, and every owner keeps its own."""
        return self.state == "keep" and (self.name == "adam" or self.momentum > 0)


class Evaluate(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Evaluation of the global model after rounds."""

    every: Annotated[
        Annotated[int, Meta(ge=0)], Meta(description="evaluate after every n-th round and after the last; 0: never")
    ] = 1
    batch_size: Annotated[Count, Meta(description="samples per evaluation batch")] = 256
    data: Annotated[
        Literal["shared", "owners"],
        Meta(
            description=(
                "`shared`: the data set's test samples, dealt out evenly; `owners`: a share each owner held back"
            )
        ),
    ] = "shared"
    share: Annotated[
        Annotated[float, Meta(gt=0, lt=1)], Meta(description="owners: the share of its samples each owner holds back")
    ] = 0.1


class Codec(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tensors are packed on the wire, per kind and per link; one codec or preset alone sets both directions."""

    activations: Annotated[str, Meta(description="smashed data, on the way forward, and in evaluation")] = "auto"
    gradients: Annotated[str, Meta(description="cut-layer gradients, on the way back")] = "auto"
    parts: Annotated[
        str, Meta(description="the owners' first and last part, to and from the aggregator; exact codecs only")
    ] = "auto"
    checkpoints: Annotated[
        Literal["none", "lz4", "bitmap", "huff"],
        Meta(
            description="part files of checkpoints: `none` safetensors, which every tool reads; `huff` about a sixth"
            " smaller, read by zmpsl alone"
        ),
    ] = "none"
    links: Annotated[
        dict[str, str],
        Meta(description="exceptions per link, such as `owner>node-0: qz(0.5)` or `node-0>node-1: none`"),
    ] = field(default_factory=dict)


class Job(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training job."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run folder")] = (
        "digits"
    )
    seed: Annotated[
        Annotated[int, Meta(ge=0, lt=2**53)], Meta(description="all randomness of the run follows from it")
    ] = 0
    model: Annotated[Model, Meta(description="the network")] = Model()
    data: Annotated[Data, Meta(description="the data")] = Data()
    owners: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_OWNERS)], Meta(description="number of data owners (the paper's K)")
    ] = 4
    compute_nodes: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_NODES)] | None,
        Meta(
            description=(
                "number of compute nodes in the chain (the paper's N); 2 where neither this nor multihop_level is given"
            )
        ),
    ] = None
    multihop_level: Annotated[
        Annotated[int, Meta(ge=3, le=MAX_NODES + 2)] | None,
        Meta(description="number of parts (the paper's P = N + 2), another way to say compute_nodes"),
    ] = None
    cuts: Annotated[
        Literal["auto", "even"] | list[Count],
        Meta(
            description=(
                "`auto`: the roles measure the blocks and the best split is solved; `even`: equal block counts on the"
                " compute nodes; or the index of the first block of parts 1, 2, ..., P-1"
            )
        ),
    ] = "auto"
    first_cut: Annotated[
        Count | None, Meta(description="auto, even: blocks of the owners' first part; 1 where not given")
    ] = None
    last_cut: Annotated[
        Count | None,
        Meta(description="auto, even: first block of the owners' last part; the last block where not given"),
    ] = None
    train: Annotated[Train, Meta(description="rounds, epochs, batches")] = Train()
    optimizer: Annotated[Optimizer, Meta(description="optimiser")] = Optimizer()
    evaluate: Annotated[Evaluate, Meta(description="evaluation")] = Evaluate()
    codec: Annotated[Codec, Meta(description="compression on the wire")] = Codec()
    planning: Annotated[Planning, Meta(description="how `cuts: auto` is solved")] = Planning()
    privacy: Annotated[Privacy, Meta(description="what owners do to smashed data")] = Privacy()
    emulate: Annotated[Emulate, Meta(description="slower devices, imitated")] = Emulate()
    guard: Annotated[Guard, Meta(description="what is refused of owners")] = Guard()
    network: Annotated[Network, Meta(description="sockets, limits, deadlines")] = Network()
    recover: Annotated[Recover, Meta(description="lost roles")] = Recover()
    memory: Annotated[
        Count | Annotated[str, Meta(pattern=MEMORY_PATTERN)],
        Meta(
            description=(
                "most memory of each compute node's process: bytes, a size such as `4GiB`, or a share of what the host"
                " or its cgroup has, such as `80%`, which nodes on one host divide among them; a node's own `--memory`"
                " goes before it"
            )
        ),
    ] = "80%"
    hard_memory: Annotated[
        bool,
        Meta(
            description=(
                "have the system refuse a compute node's process private memory beyond `memory` and a tenth of it, so"
                " that what nobody reckoned with ends that node with an error, before the system has to choose whom to"
                " kill; Linux only, and only processes that are zmpsl's own"
            )
        ),
    ] = False
    owners_in_flight: Annotated[
        Literal["auto"] | Count,
        Meta(
            description=(
                "owners that train at the same time; each needs a replica on every node. `auto`: as many as fill the"
                " chain by what was measured for `cuts: auto`, and more while the busiest node has to wait; at most as"
                " many as the nodes' memory holds"
            )
        ),
    ] = "auto"
    recompute: Annotated[
        Literal["never", "auto", "always"],
        Meta(
            description=(
                "compute nodes keep only the input of their part and run forward again before backward: the same result"
                " in less memory, for about a third more work. `auto`: on nodes that else could not hold one owner, or"
                " not owners_in_flight of them; where no cuts fit otherwise; and where it lets so many more owners in"
                " that batches follow one another faster"
            )
        ),
    ] = "auto"
    threads: Annotated[Count, Meta(description="torch threads of each role that trains")] = 1
    keep_checkpoints: Annotated[Count, Meta(description="committed rounds whose checkpoints are kept")] = 2

    @property
    def nodes(self) -> int:
        """Number of compute nodes N, from whichever of the two fields was given."""
        if self.compute_nodes is not None:
            return self.compute_nodes
        return self.multihop_level - 2 if self.multihop_level is not None else 2

    @property
    def parts(self) -> int:
        """Number of parts P = N + 2."""
        return self.nodes + 2
