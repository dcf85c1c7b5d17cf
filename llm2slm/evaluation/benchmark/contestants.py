"""What a benchmark times: each system under each decoder that fits it, by the names in `benchmark.decoders`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm2slm.decoding import choose
from llm2slm.decoding.cascade import Rule
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.decoding.static import misfit
from llm2slm.evaluation.benchmark.ctranslate2_int8 import CTranslate2Decoder
from llm2slm.evaluation.benchmark.speculative import SpeculativeDecoder
from llm2slm.nearest_names import nearest_hint
from llm2slm.types import Decoding, SystemKind, UserError

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder
    from llm2slm.models.hybrid import LLM2SLM

ASSISTED, LOOKUP, CTRANSLATE2 = "assisted", "prompt_lookup", "ctranslate2"
OF_LLMS = (ASSISTED, LOOKUP, CTRANSLATE2)
"""Decoders of the LLM alone, which `decoding` does not have."""
KNOWN = [*(each.value for each in Decoding), *OF_LLMS]
"""All names of decoders."""
ANY_CACHE = (Decoding.generate, Decoding.eager, Decoding.auto, Decoding.cascade)
"""Decoders that every system fits."""
ENGINE = {Decoding.lossless: Decoding.captured, Decoding.compiled_lossless: Decoding.compiled}
"""Decoder -> the decoder of the LLM alone that runs the same forward passes, if it is not the same."""


@dataclass(frozen=True)
class Contestant:
    """A system under a decoder.

    Attributes:
        system: name of the system. decoding: name of the decoder, as in `benchmark.decoders`.
        decoder: its `model` is the system whose responses it gives: of lossless decoding the LLM.
    """

    system: str
    decoding: str
    decoder: Decoder

    @property
    def name(self) -> str:
        """As results name it: the system, with the decoder if it is not `generate`."""
        return named(self.system, self.decoding)

    @property
    def kind(self) -> SystemKind:
        """Whose responses they are."""
        return self.decoder.model.kind


def named(system: str, decoding: str) -> str:
    """The name of a system under a decoder."""
    return system if decoding == Decoding.generate else f"{system} ({decoding})"


def check(decoders: Sequence[str], of_hybrids: Sequence[str] = ()) -> None:
    """Refuses unknown names of decoders.

    Raises:
        UserError: names the first one, and all known ones.
    """
    of_systems, known = [each.value for each in Decoding], KNOWN
    if not decoders:
        raise UserError(f"benchmark.decoders=[]: give one or more of {', '.join(known)}")
    for key, names, possible in (("decoders", decoders, known), ("hybrid_decoders", of_hybrids, of_systems)):
        for name in names:
            if name not in possible:
                raise UserError(f"benchmark.{key}: {name} is unknown{nearest_hint(name, possible)}; possible: "
                                f"{', '.join(possible)}")  # fmt: skip


def contestants(
    systems: Mapping[str, LLM2SLM],
    decoders: Sequence[str],
    llm_of: Mapping[str, str],
    threads: int | None = None,
    *,
    of_hybrids: Sequence[str] = (),
    rule: Rule | None = None,
) -> list[Contestant]:
    """Each system under each decoder that fits it: LLMs first, by system, then in the order of `decoders`.

    A decoder that would fit the kind of a system, but not this one, is left out with one line that states why.

    Args:
        systems: name -> model in eval mode.
        llm_of: name of a hybrid -> name of its LLM among the systems.
        threads: CPU threads of decoders that do not use torch's.
        of_hybrids: further decoders for hybrids alone.
        rule: of a cascade.

    Raises:
        UserError: an unknown decoder, or one that fits none of the systems.
    """
    check(decoders, of_hybrids)
    found: list[Contestant] = []
    reasons: dict[str, str] = {}
    for system in sorted(systems, key=lambda name: systems[name].kind is not SystemKind.llm):
        further = of_hybrids if systems[system].kind is SystemKind.llm2slm else ()
        for name in dict.fromkeys([*decoders, *further]):
            made = (
                _of_llm(name, system, systems, threads)
                if name in OF_LLMS
                else _own(name, system, systems, llm_of, rule)
            )
            if isinstance(made, str):
                reasons[name] = f"{system}: {made}"
            elif made is not None:
                found.append(Contestant(system, name, made))
    hybrids = any(model.kind is SystemKind.llm2slm for model in systems.values())
    for name in dict.fromkeys([*decoders, *(of_hybrids if hybrids else ())]):
        if not any(each.decoding == name for each in found):
            raise UserError(f"benchmark.decoders={name}: {reasons.get(name, NEEDS.get(name, 'fits no system'))}; leave "
                            "it out")  # fmt: skip
    for name, reason in reasons.items():
        print(f"llm2slm: benchmark.decoders={name}: without {reason}", file=sys.stderr)
    return found


NEEDS = {
    **{name.value: "needs a hybrid and its LLM among the systems" for name in choose.WITH_LLM},
    **dict.fromkeys(OF_LLMS, "needs an LLM among the systems"),
}
"""Decoder -> what it needs, for an error message."""


def _own(
    name: str, system: str, systems: Mapping[str, LLM2SLM], llm_of: Mapping[str, str], rule: Rule | None
) -> Decoder | str | None:
    """A decoder of `Decoding`; None: it is not for this kind of system; a text: why this system does not fit."""
    decoding, model, llm = Decoding(name), systems[system], None
    if decoding in choose.WITH_LLM:
        if model.kind is not SystemKind.llm2slm:
            return None
        if system not in llm_of:
            return "its LLM is not among the systems"
        llm = systems[llm_of[system]]
    for each in (model, llm):
        if decoding not in ANY_CACHE and each is not None and (reason := misfit(each)):
            return reason
    made = choose.decoder(decoding, model, llm, rule)
    if type(made) is GenerateDecoder and decoding not in (Decoding.generate, Decoding.auto):
        return "only generate fits it"  # which `choose.decoder` has explained
    return made


def _of_llm(name: str, system: str, systems: Mapping[str, LLM2SLM], threads: int | None) -> Decoder | str | None:
    """A decoder of `OF_LLMS`; as `_own`."""
    model = systems[system]
    if model.kind is not SystemKind.llm:
        return None
    if name == LOOKUP:
        return SpeculativeDecoder(model)
    if name == CTRANSLATE2:
        return CTranslate2Decoder(model, threads)
    own = model.collator.slm_tokenizer.get_vocab()
    for other in systems.values():
        if other.kind is SystemKind.slm and other.collator.slm_tokenizer.get_vocab() == own:
            return SpeculativeDecoder(model, other)
    return "assisted generation needs an SLM alone with the LLM's tokenizer among the systems (systems.slm=DIR)"


def same_decoding(found: Sequence[Contestant], llm_of: Mapping[str, str], first: str | None) -> dict[str, str]:
    """Name -> name of the LLM under the same decoder (`ENGINE`), where that is timed; not of the LLM itself.

    Args:
        first: the LLM of systems that have none.
    """
    names, pairs = {each.name for each in found}, {}
    for each in found:
        llm = llm_of.get(each.system, first)
        decoding = ENGINE.get(Decoding(each.decoding), each.decoding) if each.decoding not in OF_LLMS else None
        if llm is not None and decoding is not None and (other := named(llm, decoding)) in names - {each.name}:
            pairs[each.name] = other
    return pairs
