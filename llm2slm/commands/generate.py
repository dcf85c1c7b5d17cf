"""`llm2slm generate run=DIR`: generates the answer to a prompt, to each text of a file, or to typed lines."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm2slm import runs
from llm2slm.commands import silence_libraries
from llm2slm.commands.batch_generation import BatchGeneration, check_writable, generate_file, read
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.config import DataConfig, GenerateConfig, TaskConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.shown_text import in_terminal
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.tracking.tracker import Table
from llm2slm.types import Control, Overlong, UserError, check_text

if TYPE_CHECKING:
    from torch import Tensor

    from llm2slm.decoding.decoder import Decoder
    from llm2slm.models.hybrid import LLM2SLM

SectionT = TypeVar("SectionT")

MAX_NEW_TOKENS = 128
"""Maximum number of response tokens if neither the user nor the run sets it."""
ABLATIONS = {
    Control.constant: "it gets the same constant representation for every prompt, not the LLM's",
    Control.shuffled: "it gets the LLM's representation of another prompt, and zeros for a single prompt",
    Control.zero: "it gets zeros in place of the LLM's representations",
}
"""The effect of each ablation of the representations, for a warning."""


def run(config: GenerateConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Loads the model and generates the answers.

    Raises:
        UserError: no model is given, both `prompt` and `input` are given, or a file cannot be read.
    """
    texts = check(config)
    around, limit = defaults(config)
    decoder = load(config)
    from llm2slm.decoding.lossless import LosslessDecoder  # loads torch, after what is checked without it

    # of lossless decoding `model` is the LLM, which has no record of the prompts
    model = decoder.hybrid if isinstance(decoder, LosslessDecoder) else decoder.model
    before, after = recorded_words(model, config) if around is None else around
    arguments = decoding(config, limit)
    if config.prompt is not None:
        check_lengths(decoder, [("prompt", before + config.prompt + after)])
        show_held()
        with track("generate", config, None) as tracking:
            text = answer(decoder, config, before + config.prompt + after, arguments)
            tracking.table("samples", Table(["prompt", "prediction"], [[config.prompt, text]]))
    elif texts is not None:
        check_lengths(
            decoder, [(f"{config.input}, {n}", before + text.strip() + after) for n, text in texts if text.strip()]
        )
        show_held()
        with track("generate", config, None) as tracking:
            started, prompts = time.perf_counter(), [text for _, text in texts]
            answers = generate_file(BatchGeneration(decoder, config, before, arguments, after), prompts)
            tracking.summary({"answers": len(prompts), "seconds": time.perf_counter() - started})
            rows = [list(row) for row in zip(prompts, answers, strict=False)][: config.logger.samples]
            tracking.table("samples", Table(["prompt", "prediction"], rows))
    else:
        show_held()
        converse(decoder, config, (before, after), arguments)


def check(config: GenerateConfig) -> list[tuple[str, str]] | None:
    """Checks the configuration before the model is loaded. Returns the texts of `input`, if any, with locations."""
    if config.run is None:
        raise UserError("generate needs run=DIR: a run directory, a model's folder or Hub id, or builtin/llm")
    if config.prompt is not None and config.input is not None:
        raise UserError("prompt and input are both given; give one of them")
    if config.output is not None and config.input is None:
        raise UserError("output is for the answers to a file; give input=FILE with it")
    check_ranges(config)
    check_loggers(config.logger)
    if config.overlong in (Overlong.drop, Overlong.split):
        raise UserError(f"overlong={config.overlong}: every input needs an answer; use truncate or error")
    if config.output is not None:
        check_writable(Path(config.output))
        if Path(config.output).resolve() == Path(str(config.input)).resolve():
            raise UserError(f"output={config.output}: is the input; give another file")
    return None if config.input is None else read(Path(config.input), fields(config))


def fields(config: GenerateConfig) -> tuple[str, ...]:
    """Names of the columns that may hold a row's text, in order of preference."""
    if config.field is not None:
        return (config.field,)
    home = runs.home(str(config.run))
    source = None if home is None else recorded(home, "data", DataConfig).source
    return tuple(dict.fromkeys(("source", "prompt", *([source] if source else []))))


def defaults(config: GenerateConfig) -> tuple[tuple[str, str] | None, int]:
    """The text before and after an input (None: unknown) and the maximum length of an answer: from the user, else from
    the run's task."""
    from llm2slm.data.sources.sources import task_of
    from llm2slm.data.templates import fields

    around, limit = None if config.prefix is None else (config.prefix, ""), config.max_new_tokens
    home = runs.home(str(config.run))
    if home is not None and (around is None or limit is None):
        task = task_of(recorded(home, "task", TaskConfig), recorded(home, "data", DataConfig))
        if around is None and task.prefixes:
            named = ", ".join(f"{name}: {text!r}" for name, text in task.prefixes)
            raise UserError(f"run={home} was trained on several tasks; choose one by prefix=TEXT ({named})")
        around = task.around() if around is None else around
        if around is None:
            named = " ".join(f"{{{name}}}" for name in fields(task.templates))
            raise UserError(f"run={home} was trained on prompts of several fields ({named}); set the text before "
                            "the input by prefix=TEXT")  # fmt: skip
        limit = limit or task.max_new_tokens
    return around, limit or MAX_NEW_TOKENS


def recorded_words(model: LLM2SLM, config: GenerateConfig) -> tuple[str, str]:
    """The text before and after an input, from the config of a model that has no run directory."""
    if model.config.prefix is None:
        print(f"llm2slm: {config.run} records no prefix: none is used; prefix=TEXT sets one", file=sys.stderr)
    return model.config.prefix or "", model.config.suffix


def recorded(home: Path, section: str, schema: type[SectionT]) -> SectionT:
    """A section of a run's configuration.

    Raises:
        UserError: the section does not match the schema; the message names the file and the section.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = runs.read_config(home).get(section) or {}
    where = f"{home / 'config.yaml'}: {section}"
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, found {values!r}")
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    assert isinstance(found, schema)
    return found


def load(config: GenerateConfig) -> Decoder:
    """The decoder of the model, on the GPU if there is one."""
    import torch

    from llm2slm.commands.decoders import load_decoder
    from llm2slm.commands.device import move_to_device
    from llm2slm.commands.loaded_models import load_system
    from llm2slm.config import ModelConfig

    silence_libraries()
    torch.manual_seed(config.seed)
    given = ModelConfig(llm=config.model.llm.named(str(config.run)))
    model = load_system(str(config.run), config.llm, given, recorded=False).model
    model.eval()
    if model.control is not Control.none:
        print(f"llm2slm: warning: {config.run} is a control: {ABLATIONS[model.control]}", file=sys.stderr)
    if config.overlong is not None:
        model.collator.overlong = config.overlong
    move_to_device(model, "auto")
    return load_decoder(
        config.decoding,
        model,
        config.llm,
        num_beams=config.num_beams,
        cascade=config.cascade,
        prompt_cache=config.prompt_cache,
    )


def decoding(config: GenerateConfig, limit: int) -> dict[str, Any]:
    """Arguments of transformers' `generate`."""
    arguments: dict[str, Any] = {
        "max_new_tokens": limit,
        "num_beams": config.num_beams,
        "do_sample": config.do_sample,
    }
    if config.do_sample:
        from llm2slm.evaluation.decoding_settings import sampling

        arguments |= sampling(config.temperature, config.top_p)
    return arguments


def check_lengths(decoder: Decoder, prompts: Iterable[tuple[str, str]]) -> None:
    """Checks the lengths of all prompts before generation; reports the number of truncated ones.

    Args:
        prompts: the location and the text of each.

    Raises:
        UserError: a prompt is too long, and the model was not trained with data.overlong=truncate.
    """
    before = decoder.model.collator.counts["prompt"]
    for location, prompt in prompts:
        check_text(location, prompt)
        try:
            decoder.batch([prompt])
        except UserError as error:
            raise UserError(f"{location}: {str(error).partition(': ')[2]}") from None
    cut = decoder.model.collator.counts["prompt"] - before
    if cut:
        limit = decoder.model.collator.max_prompt_tokens
        print(f"llm2slm: prompts longer than {limit} tokens, cut to that length: {cut}", file=sys.stderr)


def answer(decoder: Decoder, config: GenerateConfig, text: str, arguments: dict[str, Any]) -> str:
    """Prints the answer to one text, token by token if streaming is possible; returns it."""
    from llm2slm.decoding.decoder import generate_text

    if config.stream and config.num_beams == 1 and decoder.streams:
        streamer = _streamer(
            decoder.model.collator.slm_tokenizer,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,  # as `Collator.decode`
        )

        def show(_: Tensor, ids_KN: Tensor, counts_K: Tensor) -> None:
            streamer.put(ids_KN[0, : int(counts_K[0])])

        found = generate_text(decoder, [text], 1, on_tokens=show, **arguments)[0]
        streamer.end()
        return found
    found = generate_text(decoder, [text], 1, **arguments)[0]
    print(in_terminal(found))
    return found


def _streamer(tokenizer: Any, **arguments: Any) -> Any:
    """transformers' streamer to standard output; control characters are visible in a terminal."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(in_terminal(text), stream_end)

    return Streamer(tokenizer, **arguments)


def converse(decoder: Decoder, config: GenerateConfig, around: tuple[str, str], arguments: dict[str, Any]) -> None:
    """Answers each typed line, until an empty line or the end of the input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history for input()
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not UTF-8 are reported for their line
        sys.stdin.reconfigure(errors="surrogateescape")
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(mark)
        except EOFError:
            return
        if not text.strip():
            return
        try:
            check_lengths(decoder, [("prompt", text.join(around))])
            answer(decoder, config, text.join(around), arguments)
        except UserError as error:  # the session continues after a text that is too long
            print(f"llm2slm: error: {error}", file=sys.stderr)
