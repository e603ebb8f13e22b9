"""Codecs as a job says them: texts, presets, what each stands for, and what is refused with which words."""

from __future__ import annotations

import pytest
from helpers import job

from zmpsl.errors import JobError
from zmpsl.job.codec import CLASSES, EXACT, LOSSY, Spec, parse_spec
from zmpsl.job.load import dump_job, parse_job
from zmpsl.loops.station import codec_for
from zmpsl.transport.task import Op


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        *((name, Spec(name)) for name in (*EXACT, "bf16", "int8", "int4", "bf16-huff")),
        ("qz", Spec("qz", 0.2)),
        (" qz( 0.5 ) ", Spec("qz", 0.5)),
        ("topk", Spec("topk", 0.1)),
        ("topk(0.02)", Spec("topk", 0.02)),
        ("topk(0.02, error-feedback)", Spec("topk", 0.02, feedback=True)),
        ("lossless", Spec("huff")),
        ("accurate", Spec("bf16-huff")),
        ("slow-link", Spec("qz", 0.5)),
        ("auto", Spec("auto", within="lossless")),
        ("auto(slow-link)", Spec("auto", within="slow-link")),
    ],
)
def test_what_a_text_means(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec


def test_what_is_exact() -> None:
    exact = {name for name in (*EXACT, *LOSSY, "auto") if parse_spec(name).exact}
    assert exact == {*EXACT, "auto"}
    assert not parse_spec("auto(accurate)").exact


def test_the_default_changes_no_value() -> None:
    assert {job().codec.activations, job().codec.gradients, job().codec.parts} == {"auto"}
    assert parse_spec("auto").exact


@pytest.mark.parametrize(
    ("text", "parts"),
    [*((name, "huff") for name in CLASSES), ("auto(accurate)", "auto"), ("bf16", "none"), ("none", "none")],
)
def test_one_line_sets_both_directions(text: str, parts: str) -> None:
    codec = parse_job(f"codec: {text}", "job.yaml").codec
    assert (codec.activations, codec.gradients, codec.parts, codec.links) == (text, text, parts, {})
    assert parse_job("", "job.yaml", [f"codec={text}"]).codec == codec


def test_single_keys_may_differ_from_the_one_line() -> None:
    wanted = parse_job("codec: slow-link", "job.yaml", ["codec.gradients=qz(0.1)", "codec.links.owner>node-0=int8"])
    assert wanted.codec.gradients == "qz(0.1)"
    assert wanted.codec.activations == "slow-link"
    assert parse_job(dump_job(wanted), "again").codec == wanted.codec


def test_a_links_codec_goes_before_that_of_the_kind() -> None:
    wanted = job("codec=lossless", "codec.links.owner>node-0=qz(0.5)", "codec.links.owner-1>node-0=bf16")
    assert codec_for(wanted.codec, "owner-0", "node-0")(Op.FORWARD) == Spec("qz", 0.5)
    assert codec_for(wanted.codec, "owner-1", "node-0")(Op.EVALUATE) == Spec("bf16")
    assert codec_for(wanted.codec, "node-0", "owner-0")(Op.BACKWARD) == Spec("huff")
    assert codec_for(wanted.codec, "owner-0", "aggregator")(Op.PART) == Spec("huff")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("codec: zip", "job.yaml:1: codec.activations: 'zip' is no codec; known are none, lz4,"),
        ("seed: 1\ncodec:\n  gradients: bf15", "job.yaml:3: codec.gradients: 'bf15' is no codec; did you mean 'bf16'?"),
        ("codec:\n  activations: qz(9)", "job.yaml:2: ... in brackets stands a step from 0.001 to 4.0"),
        ("codec: qz(x)", "a step from 0.001 to 4.0"),
        ("codec: qz(0.1, 0.2)", "a step from 0.001 to 4.0"),
        ("codec: topk(0)", "a share from 0.0001 to 1.0, or a share and error-feedback"),
        ("codec: topk(0.1, feedback)", "a share and error-feedback"),
        ("codec: huff(3)", "'huff(3)': huff takes nothing in brackets"),
        ("codec: accurate(3)", "accurate takes nothing in brackets"),
        ("codec: auto(fast)", "auto takes one error class in brackets: lossless, accurate, slow-link"),
        ("codec: ''", "codec.activations: '' is no codec"),
        (
            "codec: {parts: bf16}",
            "codec.parts: 'bf16' changes values; weights are averaged ... none, lz4, bitmap, huff",
        ),
        ("codec: {parts: auto(accurate)}", "codec.parts: 'auto(accurate)' changes values"),
        (
            "codec: {links: {owner>aggregator: qz}}",
            "owner>aggregator carries weights, which may only be packed exactly",
        ),
        ("codec: {activations: 5}", "codec.activations: expected `str`, got `int` (it is 5)"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(text, "job.yaml")
    assert [part for part in words.split(" ... ") if part not in str(caught.value)] == [], caught.value


def test_an_override_is_named_where_it_is_wrong() -> None:
    with pytest.raises(JobError, match=r"--set codec=zip: codec.activations: 'zip' is no codec"):
        parse_job("", "job.yaml", ["codec=zip"])
