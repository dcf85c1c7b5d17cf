"""The judge client of a model on this machine."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import torch

from llm2slm.data.tokenization.plain_text import PlainText, control_tokens
from llm2slm.evaluation.judge.client import Refused, Reply, without_surrogates

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


class LocalClient:
    """A transformers model with greedy decoding. The prompt is put into the tokenizer's chat template, if it has one.

    Args:
        location: name of the model, for files and messages.
        model, tokenizer: a decoder-only or encoder-decoder language model, on the device that runs it.
        max_tokens: maximum length of a reply.
    """

    attempts = 1  # greedy decoding: the same prompt has the same reply

    def __init__(
        self, location: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ) -> None:
        self.location, self.model, self.tokenizer, self.max_tokens = location, model.eval(), tokenizer, max_tokens
        self._encode = PlainText(tokenizer)
        self._in_template: PlainText | None = None
        # set on the model: generate() fills in what an argument leaves out from the model's own settings
        self.model.generation_config = self._greedy()

    def complete(self, prompt: str, stop: threading.Event) -> Reply:  # noqa: ARG002 - never waits
        """Returns the reply to a prompt.

        Raises:
            Refused: prompt and reply need more positions than the model has.
        """
        started = time.monotonic()
        ids = self._ids(prompt)
        decoder_only = not self.model.config.is_encoder_decoder
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        needed = len(ids) + self.max_tokens if decoder_only else max(len(ids), self.max_tokens)
        if positions is not None and needed > positions:
            raise Refused(
                f"{len(ids)} prompt tokens and up to {self.max_tokens} reply tokens exceed the judge's {positions} "
                "positions"
            )
        prompt_ids = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            output = self.model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids))[0]
        reply = output[len(ids) :] if decoder_only else output[1:]  # an encoder-decoder's output has its start token
        text = without_surrogates(str(self.tokenizer.decode(reply, skip_special_tokens=True)))
        return Reply(text, prompt_tokens=len(ids), reply_tokens=len(reply), seconds=time.monotonic() - started)

    def _ids(self, prompt: str) -> list[int]:
        """Token ids of the prompt in the chat template; without a template, of the prompt (no eos if decoder-only).

        Only the template adds control tokens; control tokens in the prompt are encoded as plain text.
        """
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            return self._template_ids(text, prompt)
        ids = self._encode([prompt])[0][0]
        ends = not self.model.config.is_encoder_decoder and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if ends else ids

    def _template_ids(self, text: str, prompt: str) -> list[int]:
        """Token ids of a rendered chat template, with the prompt in it as plain text.

        Raises:
            Refused: the prompt holds a control token and the template changes the prompt, so that it is not found.
        """
        content = prompt.strip()
        before, content, after = text.partition(content) if text.count(content) == 1 else (text, "", "")
        if not content and any(name in prompt for name in control_tokens(self.tokenizer)):
            raise Refused("the question holds a control token, and the judge's chat template changes the question")
        encode = self._in_template
        if encode is None or (before, after) != (encode.before, encode.after):
            encode = self._in_template = PlainText(self.tokenizer, before, after, special_tokens=False)
        return encode([content])[0][0]

    def _greedy(self) -> GenerationConfig:
        """Greedy decoding with the model's special tokens and none of its other settings."""
        from transformers import GenerationConfig

        own = self.model.generation_config
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        special = {name: getattr(own, name, None) for name in names}
        if special["eos_token_id"] is None:
            special["eos_token_id"] = self.tokenizer.eos_token_id
        if special["pad_token_id"] is None:
            eos = special["eos_token_id"]
            special["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
        return GenerationConfig(max_new_tokens=self.max_tokens, do_sample=False, num_beams=1, **special)
