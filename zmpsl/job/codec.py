"""How tensors shall be packed, as a job says it: `huff`, `qz(0.5)`, `topk(0.1, error-feedback)`, `auto(accurate)`.

Codecs by what they do to float32 values:

    none lz4 bitmap huff          exact; all but none also spare gradients that nobody reads (docs/concepts.md)
    bf16 bf16-huff                each value rounded to 8 bits of mantissa
    int8 int4 qz(STEP)            256 (16) levels per block; multiples of STEP times the root mean square
    topk(SHARE[, error-feedback]) the largest values, rounded to bf16; the others are 0
    auto[(CLASS)]                 what makes this link fastest, measured while it works, out of an error class
    lossless accurate slow-link   the error classes; alone they stand for huff, bf16-huff, and qz(0.5)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from msgspec import Struct

from zmpsl.job.schema import Codec

__all__ = ["CLASSES", "EXACT", "LOSSY", "Spec", "packs", "parse_spec", "problems", "spread"]

EXACT = ("none", "lz4", "bitmap", "huff")
LOSSY = ("bf16", "int8", "int4", "bf16-huff", "qz", "topk")
CLASSES = {"lossless": "huff", "accurate": "bf16-huff", "slow-link": "qz(0.5)"}
_KNOWN = (*EXACT, *LOSSY, "auto", *CLASSES)
_FORM = re.compile(r"\s*([a-z0-9-]+)\s*(?:\(([^()]*)\))?\s*")
_FEEDBACK = "error-feedback"


class Spec(Struct, frozen=True):
    """One codec with its parameters.

    Attributes:
        name: One of `EXACT` or `LOSSY`, or `auto`.
        number: qz: step, in root mean squares; topk: share of the values that is kept; otherwise 0.
        feedback: topk: whether what was not sent is added to the next tensor.
        within: auto: one of `CLASSES`.
    """

    name: str
    number: float = 0.0
    feedback: bool = False
    within: str = "lossless"

    @property
    def exact(self) -> bool:
        """Whether every tensor comes out bit for bit."""
        return self.name in EXACT or (self.name == "auto" and self.within == "lossless")


def parse_spec(text: str) -> Spec:
    """Reads one codec.

    Raises:
        ValueError: It is none; the message says why, and what would be one.
    """
    found = _FORM.fullmatch(text)
    name, arguments = (found[1], found[2]) if found else (text, None)
    if name not in _KNOWN:
        close = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_KNOWN)}"
        raise ValueError(f"{text!r} is no codec; {hint}")
    parts = [] if arguments is None else [part.strip() for part in arguments.split(",")]
    if name in CLASSES:
        return parse_spec(CLASSES[_none_of(text, name, parts)])
    if name == "auto":
        return _auto(text, parts)
    if name == "qz":
        return Spec(name, _one_number(text, parts, 0.2, "step", 0.001, 4.0))
    if name == "topk":
        feedback = parts[1:] == [_FEEDBACK]
        share = _one_number(text, parts[:1] if feedback else parts, 0.1, "share", 0.0001, 1.0)
        return Spec(name, share, feedback)
    return Spec(_none_of(text, name, parts))


def _none_of(text: str, name: str, parts: list[str]) -> str:
    if parts:
        raise ValueError(f"{text!r}: {name} takes nothing in brackets")
    return name


def _auto(text: str, parts: list[str]) -> Spec:
    within = parts[0] if parts else "lossless"
    if len(parts) > 1 or within not in CLASSES:
        raise ValueError(f"{text!r}: auto takes one error class in brackets: {', '.join(CLASSES)}")
    return Spec("auto", within=within)


def _one_number(text: str, parts: list[str], default: float, what: str, low: float, high: float) -> float:
    if not parts:
        return default
    try:
        value = float(parts[0])
    except ValueError:
        value = -1.0
    if len(parts) > 1 or not low <= value <= high:
        more = f", or a {what} and {_FEEDBACK}" if what == "share" else ""
        raise ValueError(f"{text!r}: in brackets stands a {what} from {low} to {high}{more}")
    return value


def spread(text: str) -> dict[str, str]:
    """Gives the section that one text for the whole `codec` stands for: both directions, and parts where it pays."""
    name = text.strip()
    parts = "huff" if name in CLASSES else "auto" if name.startswith("auto") else "none"
    return {"activations": text, "gradients": text, "parts": parts}


def packs(codec: Codec) -> bool:
    """Tells whether any tensor is packed, or may be."""
    texts = (codec.activations, codec.gradients, codec.parts, codec.checkpoints, *codec.links.values())
    return any(parse_spec(text).name != "none" for text in texts)


def problems(codec: Codec) -> Iterator[tuple[list[str], str]]:
    """Finds what is wrong with a job's codecs: the path of the key and what to do about it."""
    for key in ("activations", "gradients", "parts"):
        weights = "weights are averaged, so they may only be packed exactly" if key == "parts" else ""
        yield from _problem([key], getattr(codec, key), weights)
    for link, text in codec.links.items():
        weights = f"{link} carries weights, which may only be packed exactly" if "aggregator" in link else ""
        yield from _problem(["links", link], text, weights)


def _problem(path: list[str], text: str, only_exact: str) -> Iterator[tuple[list[str], str]]:
    where = ".".join(["codec", *path])
    try:
        spec = parse_spec(text)
    except ValueError as error:
        yield ["codec", *path], f"{where}: {error}"
        return
    if only_exact and not spec.exact:
        yield ["codec", *path], f"{where}: {text!r} changes values; {only_exact}: {', '.join(EXACT)} or auto"
