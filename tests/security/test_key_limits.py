"""Limits that a key has in the allow-list: set, shown, changed while a run goes on, and held beside the job's."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from helpers import SMALL, job, wait_for
from hostile import forward
from keyed import ENDLESS, MEMBERS, Site, error_of, stranger
from siege import undisturbed
from typed import done, zmpsl

from zmpsl.errors import JobError, JoinError
from zmpsl.keys import Allowed, add_member, limit_member, read_allowed, security_from
from zmpsl.plan import Rates
from zmpsl.roles.manager import Phase
from zmpsl.roles.owner import DataOwner
from zmpsl.transport.curve import new_pair
from zmpsl.transport.quota import Quota, QuotaError

HEX = "a" * 64
GO_ON = ["recover.quorum=0.5", "recover.wait_s=1"]


# -- the list ----------------------------------------------------------------------------------------------------------


def test_limits_are_set_shown_changed_and_lifted(tmp_path: Path):
    done("keys", "new", "pi", "--role", "owner", folder=tmp_path)
    done(
        "keys",
        "add",
        "keys/pi.pub",
        "--places",
        "3",
        "--bytes-per-s",
        "5MiB",
        "--messages-per-s",
        "200",
        folder=tmp_path,
    )

    def listed() -> tuple[Rates, str]:
        (member,) = read_allowed(tmp_path / "keys" / "allowed.yaml").members
        assert member.places == 3
        (line,) = [line for line in done("keys", "list", folder=tmp_path).splitlines() if line.startswith("allowed")]
        return Rates(member.bytes_per_s, member.messages_per_s), line.partition(member.public)[2].strip()

    assert listed() == (Rates(5 << 20, 200), "3 places, 5,242,880 bytes/s, 200 messages/s")
    said = done("keys", "limit", "pi", "--bytes-per-s", "none", folder=tmp_path)
    assert "pi may send 200 messages/s" in said
    assert listed() == (Rates(None, 200), "3 places, 200 messages/s")
    done("keys", "limit", "pi", "--bytes-per-s", "1e6", "--messages-per-s", "0.5", folder=tmp_path)
    assert listed() == (Rates(1e6, 0.5), "3 places, 1,000,000 bytes/s, 0.5 messages/s")
    assert "as much as the job lets it" in done(
        "keys", "limit", "pi", "--bytes-per-s", "none", "--messages-per-s", "none", folder=tmp_path
    )
    assert listed() == (Rates(), "3 places")
    assert "per_s" not in (tmp_path / "keys" / "allowed.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bytes-per-s", "5MiBs"], "'5MiBs' is no size; write bytes, or a size such as 5MiB"),
        (["--bytes-per-s", "50%"], "'50%' is no size"),
        (["--bytes-per-s", "0"], "'0' is no number above 0"),
        (["--bytes-per-s", "-3"], "'-3' is no number above 0"),
        (["--bytes-per-s", "nan"], "'nan' is no number above 0"),
        (["--messages-per-s", "inf"], "'inf' is no number above 0 and at most 1e+18; say none for no limit"),
        (["--messages-per-s", "5MiB"], "'5MiB' is no number above 0"),
        (["--messages-per-s", "many"], "'many' is no number above 0"),
        ([], "say what to change: --bytes-per-s or --messages-per-s"),
    ],
)
def test_limits_that_are_none(tmp_path: Path, words: list[str], text: str):
    pair = new_pair("pi", "owner")
    add_member(tmp_path / "keys", Allowed(name="pi", role="owner", public=pair.public))
    result = zmpsl("keys", "limit", "pi", *words, folder=tmp_path)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


def test_only_owners_have_limits(tmp_path: Path):
    done("keys", "new", "rack", "--role", "compute", folder=tmp_path)
    result = zmpsl("keys", "add", "keys/rack.pub", "--messages-per-s", "5", folder=tmp_path)
    assert result.exit_code == 2
    assert (
        "rack is for role compute; bytes_per_s and messages_per_s are limits of what data owners send" in result.output
    )
    done("keys", "add", "keys/rack.pub", folder=tmp_path)
    assert "rack is for role compute" in zmpsl("keys", "limit", "rack", "--bytes-per-s", "5", folder=tmp_path).output
    assert (
        "does not have 'pi'; it has rack" in zmpsl("keys", "limit", "pi", "--bytes-per-s", "5", folder=tmp_path).output
    )


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("bytes_per_s: 5MiB", r"Expected `float \| null`, got `str` - at `\$.members\[0\].bytes_per_s`"),
        ("bytes_per_s: 0", r"Expected `float` > 0.0 - at `\$.members\[0\].bytes_per_s`"),
        ("messages_per_s: -1", r"Expected `float` > 0.0"),
        ("messages_per_s: .nan", r"Expected `float` > 0.0"),
        ("messages_per_s: .inf", r"Expected `float` <= 1e\+?18"),
        ("messages_per_h: 1", r"unknown field `messages_per_h` - at `\$.members\[0\]`"),
    ],
)
def test_a_list_written_by_hand(tmp_path: Path, more: str, text: str):
    path = tmp_path / "allowed.yaml"
    path.write_text(f"members: [{{name: a, role: owner, public: '{HEX}', {more}}}]")
    with pytest.raises(JobError, match=text):
        read_allowed(path)
    path.write_text(f"members: [{{name: a, role: aggregator, public: '{HEX}', bytes_per_s: 1}}]")
    with pytest.raises(JobError, match="a is for role aggregator"):
        read_allowed(path)


# -- what is counted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_job", "of_key", "taken", "rule"),
    [
        (None, 2.0, 20, "messages_per_s of its key, zmpsl keys list"),
        (1.0, 2.0, 10, "guard.messages_per_s"),
        (3.0, 2.0, 20, "messages_per_s of its key, zmpsl keys list"),
        (3.0, None, 30, "guard.messages_per_s"),
    ],
)
def test_the_stricter_of_job_and_key_holds(of_job: float | None, of_key: float | None, taken: int, rule: str):
    quota = Quota(messages_per_s=of_job)
    quota.limit({1: Rates(None, of_key)})
    for _ in range(taken):
        quota.come(1, 1, 0.0)
    with pytest.raises(QuotaError, match=rf"owner 1 has sent more than {taken} messages at once .* \({rule}\)"):
        quota.come(1, 1, 0.0)
    quota.come(0, 1, 0.0)


def test_a_limit_that_changes_forgets_nothing():
    """What was sent still counts, and a limit that is lifted is gone."""
    quota = Quota()
    quota.limit({0: Rates(None, 2.0)})
    for _ in range(15):
        quota.come(0, 1, 5.0)
    quota.limit({0: Rates(None, 10.0), 1: Rates(1.0)})
    for _ in range(5):
        quota.come(0, 1, 5.0)
    quota.limit({})
    quota.come(0, 1, 5.0)
    quota.limit({0: Rates(None, 1.0)})
    with pytest.raises(QuotaError):
        [quota.come(0, 1, 5.0) for _ in range(11)]


# -- runs --------------------------------------------------------------------------------------------------------------


def limited(folder: Path, name: str, **rates: float) -> None:
    limit_member(folder, name, **rates)


def test_limits_that_owners_keep_to_change_no_weight(site):
    running: Site = site(job(*SMALL), ["averager", "rack-1", "rack-2", "clinic-1"])
    limited(running.folder, "clinic-1", bytes_per_s=1e9, messages_per_s=1e6)
    wait_for(lambda: running.manager.manager.rates, 10)
    running.join("clinic-2", DataOwner(), security_from(running.folder / "clinic-2", "keys", "owner"))
    running.finish()
    manager = running.manager.manager
    assert manager.record.committed == undisturbed()
    assert list(manager.plan.rates.values()) == [Rates(1e9, 1e6)]
    assert all(node.rejected == 0 for node in running.nodes.values())


def test_who_sends_more_than_its_key_may_is_sent_away_and_the_others_train(site):
    """The list is changed under a run: from then on the limit holds, for that key alone."""
    running: Site = site(job(*ENDLESS, *GO_ON), keeps=True)
    manager = running.manager.manager
    wait_for(lambda: manager.phase is Phase.TRAINING, 30)
    limited(running.folder, "clinic-2", messages_per_s=0.01)
    error = error_of(running.nodes["clinic-2"], 30)
    assert isinstance(error, JoinError)
    assert "has sent more than 1 messages at once and 0.01 per second after that" in str(error)
    assert "(messages_per_s of its key, zmpsl keys list)" in str(error)
    assert "may send 0.01 messages/s from now on" in running.notices
    wait_for(lambda: manager.phase is Phase.TRAINING and len(manager.plan.active) == 1, 30)
    seen = manager.round
    wait_for(lambda: manager.round > seen + 2, 30)
    assert not running.nodes["clinic-1"].drain(0)


def test_a_flood_is_stopped_by_the_limit_of_its_key(site):
    """The same owner, honest and flooding at once, in a run whose job limits nothing."""
    running: Site = site(job(*ENDLESS, *GO_ON), [name for name in MEMBERS if name != "clinic-2"])
    limited(running.folder, "clinic-2", messages_per_s=40)
    wait_for(lambda: running.manager.manager.rates, 10)
    evil = security_from(running.folder / "clinic-2", "keys", "owner")
    victim = running.join("clinic-2", DataOwner(), evil)
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    plan = running.manager.manager.plan
    mine = next(index for index, peer in enumerate(plan.owners) if peer.public == evil.key.public)
    assert plan.rates == {mine: Rates(None, 40)}
    with stranger(zmq.PUSH, plan.nodes[0].endpoint, evil, plan.nodes[0].public) as push:
        for number in range(450):
            push.send_multipart(forward(owner=mine, batch=number))
        error = error_of(victim, 30)
    assert f"owner {mine} has sent more than 400 messages at once and 40 per second" in str(error)
