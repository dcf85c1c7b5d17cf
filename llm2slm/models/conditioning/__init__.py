"""Ways of conditioning: how z, the projected LLM representations, meets the prompt of the SLM. One module each.

Every module of this package implements one way, named like the module (`model.conditioning=NAME`), as a subclass of
`Conditioning` called `Mode`. It defines how z meets the prompt, which SLMs it fits, how many positions it takes and
what it costs; nothing else in the code depends on a single way. To add one: a module here, an option in
conf/model/conditioning, and a row in the table of the documentation. `register` adds one at run time.

In every way z enters at prompt positions only, in training as in generation. This module imports neither torch nor
transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

from llm2slm.config import ModelConfig
from llm2slm.models.families import embedding_width, encoder_stack
from llm2slm.models.matrix_shapes import HybridShapes, PromptCost
from llm2slm.types import Batch, Init, Reps, Start, Tokenizers, UserError

if TYPE_CHECKING:
    from torch import nn

    from llm2slm.models.hybrid_config import LLM2SLMConfig
    from llm2slm.models.prompt import Prompt

NONE = "none"
"""The conditioning of a model without an LLM encoder."""


class Conditioning(ABC):
    """One way of conditioning. Stateless: trained layers are modules of the hybrid (`modules`).

    Attributes:
        name: value of `model.conditioning`.
        options: keys under `model` that configure this way alone.
        cross_attends: the SLM's own cross-attention attends to z; the SLM does not process the prompt.
        reads_embeddings: the SLM processes embeddings of the prompt's tokens, possibly together with z.
        prompt_copies: sequences of prompt length that the SLM needs positions for.
        plain_at_zero: with z = 0 the hybrid computes what the SLM alone computes.
        starts_as_llm: z may equal the LLM's representations before training (`model.projector.start=identity`).
        uses_projector: z is computed by a `Projector`; else `modules` has another module of that name.
        uses_llm_cache: the representations are the LLM's keys and values of the prompt.
    """

    name: str
    options: ClassVar[tuple[str, ...]] = ()
    cross_attends: ClassVar[bool] = False
    reads_embeddings: ClassVar[bool] = True
    prompt_copies: ClassVar[int] = 1
    plain_at_zero: ClassVar[bool] = False
    starts_as_llm: ClassVar[bool] = False
    uses_projector: ClassVar[bool] = True
    uses_llm_cache: ClassVar[bool] = False

    # Whether it fits

    def misfit(self, slm: Any) -> str | None:
        """Why an SLM (a transformers model) cannot be conditioned in this way; None: it can."""
        del slm
        return None

    def check(self, cfg: ModelConfig) -> None:
        """Refuses settings that this way cannot be combined with.

        Raises:
            UserError: names the setting.
        """
        del cfg

    # Modules and settings

    def record(self, cfg: ModelConfig, slm: Any, tokenizer: Any, llm_tokenizer: Any) -> dict[str, Any]:
        """Fields of `LLM2SLMConfig` that this way sets.

        Raises:
            UserError: the LLM or an option of this way does not fit.
        """
        del slm, tokenizer, llm_tokenizer
        return {key: getattr(cfg, key) for key in self.options}

    def kv_blocks(self, config: LLM2SLMConfig) -> list[int] | None:
        """LLM blocks (1-based) whose keys and values represent the prompt; None: hidden states do."""
        del config
        return None

    def projector_settings(self, cfg: ModelConfig, slm: Any, encoder: Any) -> dict[str, Any] | None:
        """Arguments of `Projector`, with the values that the configuration leaves open; None: it has no `Projector`.

        With `plain_at_zero` a pretrained SLM starts as itself, by a gate at zero: a last layer at zero would move by
        the whole learning rate in each element, and z would be too large after one step. Elsewhere z = 0 is not the
        plain SLM. A pretrained decoder whose cross-attention attends to z starts with the LLM's representations
        themselves if the widths are equal: a decoder cut from the LLM was trained with them.

        Raises:
            UserError: `model.projector.start` does not fit.
        """
        given, pretrained = cfg.projector, cfg.slm.start is Init.pretrained
        widths = (0, 1) if encoder is None else (encoder.width, slm.get_input_embeddings().embedding_dim)
        same = widths[0] == widths[1]
        if given.start is Start.identity and not (self.starts_as_llm and same):
            raise UserError(
                f"model.projector.start=identity is for model.conditioning={_ways('starts_as_llm')} with an LLM as "
                f"wide as the SLM; it is {self.name}, with widths {widths[0]} and {widths[1]}"
            )
        start, gate = given.start, given.gate
        if gate is None:
            own_embeddings = cfg.tokenizers is not Tokenizers.llm_tokens
            gate = self.plain_at_zero and own_embeddings and pretrained and start is None
        if start is None:
            warm = self.starts_as_llm and pretrained and slm.config.is_encoder_decoder and same
            start = Start.identity if warm else Start.random
        return asdict(given) | {"gate": gate, "start": start.value}

    def modules(self, config: LLM2SLMConfig, slm: Any, encoder: Any) -> dict[str, nn.Module]:
        """Trained modules in addition to the SLM, by their names in the hybrid; may change the SLM in place.

        Args:
            slm: the transformers model; encoder: the LLM encoder.

        Raises:
            UserError: the SLM does not fit.
        """
        from llm2slm.models.projector import Projector
        from llm2slm.models.prompt import embed_scale

        if not self.cross_attends:
            embed_scale(slm)  # refuses an SLM that takes no embeddings
        llm_tokens = config.tokenizers == Tokenizers.llm_tokens and self.reads_embeddings
        projector = Projector(
            *(encoder.width, slm.get_input_embeddings().embedding_dim),
            layers=len(encoder.layers),
            embeddings=encoder.embedding_width if llm_tokens else 0,
            **(config.projector or {}),
        )
        return {"projector": projector}

    def in_words(self, record: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """How the LLM's representations reach the SLM, for the model card: the words before "a small language model".

        Args:
            record: the config of a saved hybrid, as plain values.

        Returns:
            None: by a projector.
        """
        return None

    # How z meets the prompt

    def token_by_token(self, config: LLM2SLMConfig) -> bool:
        """Whether z is mixed into the prompt token by token, so that z must be aligned with the SLM's tokens."""
        del config
        return False

    def collation(self, config: LLM2SLMConfig) -> dict[str, Any]:
        """Arguments of `Collator` that depend on the conditioning."""
        return {"align": self.token_by_token(config) and config.tokenizers != Tokenizers.llm_tokens}

    @abstractmethod
    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        """The SLM's input for the prompt.

        Args:
            model: the hybrid (`LLM2SLM`), with the modules of `modules` and `prompt_embeddings`.
            z: z_BPD in the SLM's dtype, and the LLM's mask_BP.
        """

    def attending(self, model: Any, prompt: Prompt) -> AbstractContextManager[None]:
        """A context within which the SLM's forward passes use the prompt; most ways need none."""
        del model, prompt
        return nullcontext()

    # Positions and cost

    def positions(self, config: LLM2SLMConfig, own: int, llm: int) -> int:
        """Positions that a prompt takes in the sequence of a decoder-only SLM.

        Args:
            own: its tokens under the SLM's tokenizer; llm: under the LLM's.
        """
        del config, llm
        return own

    def cost(self, shapes: HybridShapes) -> PromptCost:
        """What the SLM computes for the prompt (`evaluation/benchmark/costs.py`)."""
        return PromptCost(shapes.slm, shapes.prompt_tokens + shapes.virtual)

    def cost_settings(self, model: Any) -> dict[str, Any]:
        """Arguments of `costs.generation_cost` that describe the hybrid's modules."""
        return {"projector_shape": model.projector.shape, "embedding_width": model.projector.embedding_width}

    def planned_cost_settings(
        self, cfg: ModelConfig, llm: Any, slm: Any, record: LLM2SLMConfig | None = None
    ) -> dict[str, Any]:
        """As `cost_settings`, for a hybrid that is not built.

        Args:
            llm, slm: transformers configs, of families that `models/families.py` knows.
            record: of a saved hybrid; None: it was not trained.

        Raises:
            UserError: the LLM or an option of this way does not fit.
        """
        del record
        width, hidden = embedding_width(slm.to_dict()), cfg.projector.hidden
        mapped = cfg.tokenizers is Tokenizers.llm_tokens and self.reads_embeddings
        return {
            "projector_shape": (encoder_stack(llm.to_dict()).width, width if hidden is None else hidden, width),
            "embedding_width": embedding_width(llm.to_dict()) if mapped else 0,
        }


_registered: dict[str, type[Conditioning]] = {}


def names() -> list[str]:
    """Names of all ways of conditioning, `none` included, in alphabetical order. Imports none of them."""
    return sorted({module.name for module in iter_modules(__path__)} | _registered.keys())


def register(name: str, mode: type[Conditioning]) -> None:
    """Adds a way of conditioning at run time.

    Raises:
        ValueError: the name is taken.
    """
    if name in names():
        raise ValueError(f"conditioning {name} exists already")
    _registered[name] = mode


def get(name: str) -> Conditioning:
    """A way of conditioning by its name.

    Raises:
        UserError: no such name.
    """
    if name not in names():
        raise UserError(f"model.conditioning={name} is unknown; possible: {', '.join(names())}")
    mode = _registered.get(name) or import_module(f"{__name__}.{name}").Mode
    found: Conditioning = mode()
    found.name = name
    return found


def _ways(attribute: str) -> str:
    """Names of the ways with a true attribute, for an error message."""
    return " or ".join(name for name in names() if getattr(get(name), attribute))


def check_pair(cfg: ModelConfig, slm: Any) -> Conditioning:
    """The configured way of conditioning, for a hybrid of this SLM.

    Raises:
        UserError: it does not fit the SLM or other settings; names the ways that fit.
    """
    mode = get(cfg.conditioning)
    if reason := mode.misfit(slm):
        possible = ", ".join(name for name in names() if get(name).misfit(slm) is None)
        which = f"a {slm.config.model_type} ({reason})"
        raise UserError(f"model.conditioning={mode.name} does not fit {which}; possible: {possible}")
    mode.check(cfg)
    _check_options(cfg, mode)
    start, gate, zero = cfg.projector.start, cfg.projector.gate, "starts z at zero"
    lost = f"which leaves conditioning={mode.name} nothing to read; use it with "
    lost += f"model.conditioning={_ways('plain_at_zero')}"
    if gate and not mode.plain_at_zero:
        raise UserError(f"model.projector.gate=true {zero}, {lost}")
    if start is Start.zero and not mode.plain_at_zero:
        raise UserError(f"model.projector.start=zero {zero}, {lost}")
    if start is Start.zero and gate:
        raise UserError(
            f"model.projector.start=zero {zero}, and gate=true starts it at zero as well, so that neither gets a "
            "gradient; leave one of them out"
        )
    return mode


def _check_options(cfg: ModelConfig, mode: Conditioning) -> None:
    """Refuses an option of another way of conditioning where it is set to another value than its default."""
    defaults: Mapping[str, Any] = vars(ModelConfig())
    for other in map(get, names()):
        for key in other.options:
            if key not in mode.options and getattr(cfg, key) != defaults[key]:
                raise UserError(
                    f"model.{key}={getattr(cfg, key)} is for model.conditioning={other.name}; it is {mode.name}"
                )
