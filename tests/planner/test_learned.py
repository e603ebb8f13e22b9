"""What rounds tell of links and codecs: later rounds are predicted with it, and a run that goes on knows it."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

import msgspec
import pytest
from helpers import TINY, job
from made_up import profile
from measured_blocks import measured

from zmpsl.checkpoint import read_record
from zmpsl.launch.memory import MemoryRun
from zmpsl.loops.station import Station
from zmpsl.observe.events import RoundEvent
from zmpsl.planner.learned import Learned, Packing, learn
from zmpsl.planner.predict import predict
from zmpsl.planner.problem import NodeLink
from zmpsl.profiles import write_profile
from zmpsl.roles.learning import FROM_ROUNDS, Kept, with_links
from zmpsl.stats import LinkStats, Stats
from zmpsl.transport.address import leaves_host

replace = msgspec.structs.replace
APART = {"owner-0": "pi", "owner-1": "b", "node-0": "a", "node-1": "b"}
BOUNDS, ORDER = (0, 1, 3, 5, 6), ("node-0", "node-1")


def told(**links: LinkStats) -> dict[str, Stats]:
    """What members say; `node_0__node_1` is the link node-0>node-1, told by its sender. Owners are owner-0."""
    stats: dict[str, dict[str, LinkStats]] = {}
    for name, link in links.items():
        sender, peer = name.replace("_", "-").split("--")
        place = "owner-0" if sender == "owner" else sender
        stats.setdefault(place, {})[f"{sender}>{peer}"] = link
    return {place: Stats(links=each) for place, each in stats.items()}


class TestLearning:
    def test_the_slower_direction_of_a_link_between_hosts_counts(self) -> None:
        found = learn(
            Learned(),
            told(
                owner__node_0=LinkStats(bytes_per_s=1e6, latency_s=0.01),
                node_0__node_1=LinkStats(bytes_per_s=5e6),
                node_1__node_0=LinkStats(bytes_per_s=3e6, latency_s=0.02),
            ),
            APART,
            2,
        )
        assert found == Learned({"b": NodeLink(3e6, 0.02)}, {"owner-0": NodeLink(1e6, 0.01)})

    def test_links_within_a_host_stay_as_profiled(self) -> None:
        slow = LinkStats(bytes_per_s=1e6)
        stats = told(owner__node_0=slow, node_0__node_1=slow)
        assert learn(Learned(), stats, dict.fromkeys(APART, "one"), 2) == Learned()

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-300])
    def test_a_rate_that_cannot_be_is_left_out(self, value: float) -> None:
        stats = told(owner__node_0=LinkStats(bytes_per_s=value))
        assert learn(Learned(), stats, APART, 2) == Learned()

    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e9])
    def test_a_latency_that_cannot_be_is_none(self, value: float) -> None:
        stats = told(owner__node_0=LinkStats(bytes_per_s=1e6, latency_s=value))
        assert learn(Learned(), stats, APART, 2).owners == {"owner-0": NodeLink(1e6, 0.0)}

    def test_what_differs_a_little_is_no_news(self) -> None:
        first = learn(Learned(), told(owner__node_0=LinkStats(bytes_per_s=1e6)), APART, 2)
        assert learn(first, told(owner__node_0=LinkStats(bytes_per_s=1.05e6)), APART, 2) == first
        assert learn(first, told(owner__node_0=LinkStats(bytes_per_s=2e6)), APART, 2) != first

    def test_both_ends_tell_what_a_codec_does(self) -> None:
        sent = LinkStats(raw_bytes=1 << 20, packed_bytes=1 << 19, encode_s=0.5, codecs={"huff": 4})
        stats = told(node_0__node_1=sent)
        stats["node-1"] = Stats(links={"node-0>node-1": LinkStats(decode_s=0.25)})
        size = float(1 << 20)
        assert learn(Learned(), stats, APART, 2).packing == {"node-0>node-1": Packing(0.5, 0.5 / size, 0.25 / size)}

    @pytest.mark.parametrize(
        "change", [{"codecs": {"none": 4}}, {"packed_bytes": 1 << 30}, {"encode_s": math.nan}, {"raw_bytes": 7}]
    )
    def test_no_codec_and_figures_that_cannot_be(self, change: dict[str, object]) -> None:
        sent = LinkStats(raw_bytes=1 << 20, packed_bytes=1 << 19, encode_s=0.5, codecs={"huff": 4})
        assert learn(Learned(), told(node_0__node_1=replace(sent, **change)), APART, 2).packing == {}

    def test_a_chain_that_is_not_there_any_more_teaches_nothing(self) -> None:
        assert learn(Learned(), told(owner__node_0=LinkStats(bytes_per_s=1e6)), {"owner-0": "pi"}, 2) == Learned()


class TestPredicting:
    def test_packing_takes_time_and_spares_bytes(self) -> None:
        """One owner, tensors of 7 bytes at every cut, one of six messages of a batch packed to half of it."""
        plain = measured("owners=1")
        plain = replace(plain, owner_links={"owner-0": NodeLink(1.0)})
        packed = replace(plain, packing={"owner>node-0": Packing(0.5, 0.1, 0.2)})
        before, after = (predict(one, BOUNDS, ORDER, (4,)).round_s for one in (plain, packed))
        assert after - before == pytest.approx(4 * (7 * (0.1 + 0.2) - 3.5), rel=0.01)

    def test_every_owner_has_its_own_link(self) -> None:
        two = measured("owners=2")
        slow = replace(two, owner_links={"owner-1": NodeLink(1.0)})
        alone, found = (predict(one, BOUNDS, ORDER, (4, 4)).round_s for one in (two, slow))
        assert found - alone > 4 * 28 / 2
        given = replace(slow, owner_link=NodeLink(1e9))
        assert predict(given, BOUNDS, ORDER, (4, 4)).round_s == pytest.approx(alone, rel=0.01)

    def test_the_way_on_the_device_comes_on_top(self) -> None:
        found = with_links(measured(), Learned({"b": NodeLink(1e6, 0.5)}), APART)
        link = found.nodes[1].link
        assert found.nodes[0].link is None
        assert link is not None
        assert (link.bytes_per_s, found.nodes[1].link_from) == (1e6, FROM_ROUNDS)
        assert link.latency_s > 0.5

    def test_what_the_job_says_of_links_holds(self) -> None:
        given = measured(link=NodeLink(5.0))
        assert with_links(given, Learned({"b": NodeLink(1e6, 0.5)}), APART).nodes == given.nodes


def rounds_of(run: MemoryRun) -> list[float]:
    events: list[object] = []
    run.manager.board.listeners.append(events.append)
    run.run()
    return [event.predicted_s or 0.0 for event in events if isinstance(event, RoundEvent)]


def test_later_rounds_and_a_run_that_goes_on_are_predicted_with_the_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Station.traffic

    def slow(self: Station) -> dict[str, LinkStats]:
        return {name: replace(link, bytes_per_s=1e4, latency_s=0.25) for name, link in plain(self).items()}

    monkeypatch.setattr(Station, "traffic", slow)

    def started(rounds: int, **options: object) -> MemoryRun:
        hosts = (f"host-{number}" for number in count())
        monkeypatch.setattr("zmpsl.roles.member.socket.gethostname", lambda: next(hosts))
        file = tmp_path / "p.json"
        settings = [*TINY, "owners=2", "compute_nodes=2", "evaluate.every=0", f"planning.profile={file}"]
        write_profile(file, profile(job(*TINY), [1, 1, 1, 1, 1, 1]))
        return MemoryRun(job(*settings, f"train.rounds={rounds}"), runs=tmp_path / "runs", **options)

    first, second = rounds_of(started(2))
    assert second > first + 1
    (folder,) = (tmp_path / "runs").iterdir()
    kept = Kept.read(folder).learned
    assert list(kept.nodes.values()) == [NodeLink(1e4, 0.25)]
    assert set(kept.owners) == {"owner-0", "owner-1"}
    assert kept.packing == {}
    (third,) = rounds_of(started(3, resume=read_record(folder)))
    assert third == pytest.approx(second, rel=0.01)


def test_codecs_count_from_the_second_round_on(tmp_path: Path) -> None:
    """Blocks that take no time and tensors that would take a tenth of a second each: packing is all that counts."""
    quick = profile(job(*TINY), [1e-6] * 6)
    blocks = {index: replace(block, output_bytes=100_000_000) for index, block in quick.blocks.items()}
    write_profile(tmp_path / "p.json", replace(quick, blocks=blocks))
    settings = [*TINY, "owners=2", "compute_nodes=2", "evaluate.every=0", f"planning.profile={tmp_path / 'p.json'}"]
    assert len(set(rounds_of(MemoryRun(job(*settings))))) == 1
    first, second = rounds_of(MemoryRun(job(*settings, "codec=lossless")))
    assert second != pytest.approx(first, rel=0.01)


@pytest.mark.parametrize(
    ("address", "leaves"),
    [
        ("tcp://127.0.0.1:5", False), ("tcp://127.3.0.1:5", False), ("tcp://[::1]:5", False),
        ("tcp://localhost:5", False), ("tcp://10.0.0.1:5", True), ("tcp://node:5", True), ("memory://00", False),
    ],
)  # fmt: skip
def test_addresses_of_other_hosts(address: str, leaves: bool) -> None:
    assert leaves_host(address) == leaves
