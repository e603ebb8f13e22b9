"""What roles and the manager say to each other: small typed messages, msgpack on the wire, never a tensor.

A member joins, is welcomed to a place, gets the plan, builds its part, says ready, and from then on hears of rounds:

    member                          manager
    Join            ------------>
                    <------------   Welcome or Refused
    Submit (a job)  ------------>
                    <------------   Describe            (to one data owner)
    Described       ------------>
                    <------------   Measure             (to one owner, then to nodes; where cuts are solved)
    Profiled        ------------>
                    <------------   Publish             (the plan, to everybody)
    Ready           ------------>
                    <------------   MaskKeys            (to owners, where they mask what they hand in)
                    <------------   Begin (round g)
    Progress        ------------>
    Trained (owner) ------------>
    Prepared (node) ------------>
                    <------------   Committed (round g)
                    <------------   Evaluate (round g)
    Evaluated       ------------>
                    <------------   Finish

When an owner stalls and others wait for its place, the nodes set its replica aside, on disk, until it goes on:

                    <------------   SetAside (owner)    (to all nodes)
    Aside           ------------>                       (its place is given away when all have)
    Aside           ------------>                       (a task of it came: it waits for a place)
                    <------------   TakeUp (owner)      (to all nodes)

When a role is lost, or a link between two lost messages, the plan is void and the round is begun again:

    Broken (a link)  ----------->
                    <------------   Pause               (drop the work of that plan)
    Paused          ------------>
    Join (again)    ------------>                       (whoever was lost)
                    <------------   Unheard             (a message came damaged, or one is missing: join again)
                    <------------   Publish             (the next plan, from the last committed round)
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from zmpsl.errors import RemoteProtocolError
from zmpsl.job.schema import Job
from zmpsl.plan import Activation, Block, Footprint, Plan, Rates
from zmpsl.profiles import Profile
from zmpsl.stats import Stats

__all__ = [
    "Accuse", "Aside", "Begin", "Broken", "Committed", "Describe", "Described", "Evaluate", "Evaluated", "Finish",
    "FromManager", "Join", "Leave", "MaskKeys", "Measure", "Pause", "Paused", "Ping", "Prepared",
    "Probe", "Probed", "Profiled", "Progress", "Publish", "Ready", "Refused", "Restrict", "SetAside", "Submit",
    "TakeUp", "ToManager", "Trained", "Trouble", "Unheard", "Welcome", "decode_from_manager", "decode_to_manager",
    "encode", "PROTOCOL",
]  # fmt: skip

PROTOCOL = 4
Text = Annotated[str, Meta(max_length=4000)]
Name = Annotated[str, Meta(max_length=64)]
MaskKey = Annotated[bytes, Meta(max_length=32)]


class Message(Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages; the class name is the tag on the wire."""


class Join(Message, frozen=True, kw_only=True, tag=True):
    """A role asks for a place. `place` is empty for any free one; observers only watch.

    Said again when the connection to the manager was lost; `plan` is then the version of the plan it works on.
    Compute nodes add the memory of their host, what their process takes by itself, and the budget they were given.
    `public` is filled in by the manager, with the key the connection was made with; what a member writes there is lost.
    """

    role: Name
    place: Name = ""
    endpoint: Annotated[str, Meta(max_length=256)] = ""
    protocol: int = PROTOCOL
    version: Name = ""
    host: Annotated[str, Meta(max_length=256)] = ""
    pid: int = 0
    plan: int = 0
    host_bytes: Annotated[int, Meta(ge=0)] = 0
    used_bytes: Annotated[int, Meta(ge=0)] = 0
    memory: Name = ""
    public: Name = ""


class Submit(Message, frozen=True, kw_only=True, tag=True):
    """A data owner or its operator hands in the job."""

    job: Job


class Described(Message, frozen=True, kw_only=True, tag=True):
    """The block list of the job's model, as the asked data owner built it.

    With what each block puts out, and what a micro-batch takes in it.
    """

    blocks: tuple[Block, ...]
    outputs: tuple[Activation, ...] = ()
    footprints: tuple[Footprint, ...] = ()


class Profiled(Message, frozen=True, kw_only=True, tag=True):
    """What the asked member has measured of the blocks it could hold; None and why where it could not."""

    profile: Profile | None
    text: Text = ""


class Ready(Message, frozen=True, kw_only=True, tag=True):
    """The role holds its base weights for this plan; owners add how many training samples they have.

    With `privacy.secure_average` also `key`: the public half of the pair that its masks under this plan follow from.
    """

    plan: int
    samples: int = 0
    batches: int = 0
    key: MaskKey = b""


class Progress(Message, frozen=True, kw_only=True, tag=True):
    """What a role did in the round so far; said now and then.

    `busy` tells of work that is only imitated, of which more may come without anything else happening.
    """

    plan: int
    round: int
    batches: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    busy: bool = False
    stats: Stats = Stats()


class Trained(Message, frozen=True, kw_only=True, tag=True):
    """A data owner has finished its local epochs of a round and handed in its parts."""

    plan: int
    round: int
    batches: int
    loss_sum: float
    samples: int
    stats: Stats


class Prepared(Message, frozen=True, kw_only=True, tag=True):
    """A compute node or the aggregator holds, and has stored, the averaged weights of a round."""

    plan: int
    round: int
    digests: dict[Name, Name]
    stats: Stats


class Evaluated(Message, frozen=True, kw_only=True, tag=True):
    """A data owner has evaluated the global model on its held-out samples."""

    plan: int
    round: int
    correct: int
    total: int
    samples: int
    loss_sum: float


class Broken(Message, frozen=True, kw_only=True, tag=True):
    """The connection to a peer of the plan broke; what was under way on it may be lost.

    Also said, with what was wrong, when a task came that does not follow what came before.
    """

    plan: int
    peer: Name
    text: Text = ""


class Aside(Message, frozen=True, kw_only=True, tag=True):
    """What a compute node tells of an owner that it was asked to set aside, by its index.

    `kept`: its replica is on disk, and its place free; `failed`: that could not be, and why; `came`: a task of it came
    meanwhile and waits; `closed`: its work of this round is in the sum.
    """

    plan: int
    round: int
    owner: Annotated[int, Meta(ge=0)]
    state: Literal["kept", "failed", "came", "closed"]
    text: Text = ""


class Paused(Message, frozen=True, kw_only=True, tag=True):
    """The role has dropped all work of that plan and touches nothing before the next one.

    Owners add the last round for which they handed in their parts under that plan, -1 for none.
    """

    plan: int
    handed_in: int = -1


class Trouble(Message, frozen=True, kw_only=True, tag=True):
    """The role cannot go on."""

    exit_code: int
    text: Text


class Accuse(Message, frozen=True, kw_only=True, tag=True):
    """A compute node or the aggregator tells that a member breaks the rules, and how."""

    place: Name
    text: Text


class Leave(Message, frozen=True, kw_only=True, tag=True):
    """The role is done and goes."""


class Refused(Message, frozen=True, kw_only=True, tag=True):
    """The manager does not take this role, and why."""

    exit_code: int
    text: Text


class Welcome(Message, frozen=True, kw_only=True, tag=True):
    """The role's place, and the job when there is one already."""

    place: Name
    job: Job | None = None


class Describe(Message, frozen=True, kw_only=True, tag=True):
    """Asks a data owner for the block list of the job's model."""

    job: Job


class Measure(Message, frozen=True, kw_only=True, tag=True):
    """Asks a member to profile the blocks it could hold: an owner those at the ends, a node those in the middle.

    `input_shape` and `input_dtype` tell a node, which has no data, what one sample looks like.
    """

    job: Job
    input_shape: Annotated[tuple[int, ...], Meta(max_length=16)] = ()
    input_dtype: Name = "float32"


class Publish(Message, frozen=True, kw_only=True, tag=True):
    """The current plan; sent to everybody when it is made, and to whoever comes late."""

    plan: Plan


class Pause(Message, frozen=True, kw_only=True, tag=True):
    """The plan of that version is void: drop its work, close its links, wait for the next."""

    plan: int


class MaskKeys(Message, frozen=True, kw_only=True, tag=True):
    """The public keys of all owners of a plan, by place; said to owners before the first round of it."""

    plan: int
    keys: dict[Name, MaskKey]


class Restrict(Message, frozen=True, kw_only=True, tag=True):
    """What the owners' keys may send has changed; said to those who look: compute nodes and the aggregator."""

    plan: int
    rates: dict[int, Rates]


class Begin(Message, frozen=True, kw_only=True, tag=True):
    """Train this round."""

    round: int


class SetAside(Message, frozen=True, kw_only=True, tag=True):
    """Write the replica of an owner to disk and give its place to others: it has stalled."""

    round: int
    owner: int


class TakeUp(Message, frozen=True, kw_only=True, tag=True):
    """An owner that was set aside has its place again."""

    round: int
    owner: int


class Committed(Message, frozen=True, kw_only=True, tag=True):
    """This round counts: the manager's record is written."""

    round: int
    digests: dict[Name, Name]


class Evaluate(Message, frozen=True, kw_only=True, tag=True):
    """Evaluate the global model that this round gave."""

    round: int


class Finish(Message, frozen=True, kw_only=True, tag=True):
    """The run is over: exit code 0, or what went wrong."""

    exit_code: int = 0
    text: Text = ""


class Ping(Message, frozen=True, kw_only=True, tag=True):
    """Says nothing; sending it shows whether the way is open."""


class Unheard(Message, frozen=True, kw_only=True, tag=True):
    """Something the member said, up to this number of its messages, was lost on the way: it is to join again."""

    number: int


class Probe(Message, frozen=True, kw_only=True, tag=True):
    """Asks the manager for these bytes back: tells how fast the way there is."""

    data: Annotated[bytes, Meta(max_length=1 << 20)] = b""


class Probed(Message, frozen=True, kw_only=True, tag=True):
    """The bytes that somebody wanted back."""

    data: Annotated[bytes, Meta(max_length=1 << 20)] = b""


OfPlan = Progress | Trained | Prepared | Evaluated | Broken | Aside
FromMember = Described | Profiled | Ready | Paused | OfPlan | Trouble | Accuse | Leave
ToManager = Join | Submit | Probe | FromMember
FromManager = (
    Refused | Welcome | Describe | Measure | Publish | Pause | MaskKeys | Restrict | Begin | Committed | Evaluate
    | Finish | Ping | Probed | SetAside | TakeUp | Unheard
)  # fmt: skip

_ENCODER = msgspec.msgpack.Encoder()
_TO_MANAGER = msgspec.msgpack.Decoder(ToManager)
_FROM_MANAGER = msgspec.msgpack.Decoder(FromManager)


def encode(message: Message) -> bytes:
    """Gives a message as msgpack."""
    return _ENCODER.encode(message)


def decode_to_manager(data: bytes | memoryview) -> ToManager:
    """Reads what a member said.

    Raises:
        RemoteProtocolError: The bytes are no such message.
    """
    try:
        message: ToManager = _TO_MANAGER.decode(data)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a member sent {len(data)} bytes that are no control message: {error}") from error


def decode_from_manager(data: bytes | memoryview) -> FromManager:
    """Reads what the manager said.

    Raises:
        RemoteProtocolError: The bytes are no such message.
    """
    try:
        message: FromManager = _FROM_MANAGER.decode(data)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the manager sent {len(data)} bytes that are no control message: {error}") from error
