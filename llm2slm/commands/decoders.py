"""The decoder of a verb: the one that `decoding` names, with the whole LLM loaded where it needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm2slm.commands.cascade_rule import read_rule
from llm2slm.commands.loaded_models import recorded_llm
from llm2slm.config import DataConfig, LLMConfig
from llm2slm.decoding import choose
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.decoding.prompt_cache import PromptCache
from llm2slm.models.build import build_llm
from llm2slm.models.llm import share_weights
from llm2slm.models.saving import INSIDE
from llm2slm.types import Decoding, SystemKind, UserError

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import Decoder
    from llm2slm.models.hybrid import LLM2SLM


def load_decoder(
    name: Decoding,
    model: LLM2SLM,
    moved: str | None,
    data: DataConfig | None = None,
    *,
    num_beams: int = 1,
    cascade: str | None = None,
    prompt_cache: int = 0,
) -> Decoder:
    """The decoder of a loaded model; a hybrid's LLM is loaded onto its device, and shares its weights with the encoder.

    Args:
        moved: folder or id of the hybrid's LLM, if it has moved.
        data: limits on lengths; None: those of the model.
        num_beams: of the generation.
        cascade, prompt_cache: as the keys.

    Raises:
        UserError: the decoder does not fit the model or the number of beams, the whole LLM cannot be loaded, or
            `cascade` is no threshold for these models.
    """
    if name in choose.WITH_LLM and num_beams > 1:
        raise UserError(f"decoding={name}: beam search is not supported; use num_beams=1 instead of {num_beams}, or "
                        "decoding=captured")  # fmt: skip
    llm: LLM2SLM | None = None
    calibrated = read_rule(cascade) if name is Decoding.cascade else None
    if name in choose.WITH_LLM and model.kind is SystemKind.llm2slm:
        recorded = recorded_llm(model, moved, LLMConfig())
        assert recorded is not None  # every hybrid has a record
        if recorded.name == INSIDE:
            raise UserError(f"decoding={name}: the folder of this model has a part of the LLM only; name the whole LLM "
                            "by llm=PATH")  # fmt: skip
        own = model.collator
        data = data or DataConfig(
            max_prompt_tokens=own.max_prompt_tokens,
            max_response_tokens=own.max_response_tokens,
            overlong=own.overlong,
        )
        llm = build_llm(recorded, data).to(model.device)
        share_weights(model, llm)
    if calibrated is not None and llm is not None:
        calibrated.check(model, llm)
    decoder = choose.decoder(name, model.eval(), llm, None if calibrated is None else calibrated.rule, num_beams)
    if prompt_cache and isinstance(decoder, GenerateDecoder) and PromptCache.fits(model):
        decoder.prompts = PromptCache(model, prompt_cache)
    return decoder
