"""The command line: `llm2slm VERB [overrides]`. This package alone imports hydra, and only once a verb runs.

The order of a call: `main` (here) reads the verb; `compose` turns overrides into a checked, typed configuration;
`launch` runs the verb's command once, or once for each job of a sweep, which `sweep` then puts into one table.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
import traceback

from llm2slm.types import UserError

VERBS = {
    "train": "train a model (LLM-to-SLM, the SLM alone, or the LLM itself), then evaluate it",
    "evaluate": "generate for a split with a trained model, and score it",
    "generate": "answer a prompt, a file of prompts, or what you type",
    "label": "let the LLM write the answers of a split, to train on",
    "encode": "keep what the LLM says of a corpus, to train without loading it",
    "benchmark": "time a model against its LLM and others, interleaved",
    "judge": "let another model rate a run's answers, or compare those of two runs",
    "export": "write a trained model, its card and its LLM's part to a folder or to the Hub",
    "report": "one page of tables and plots from the results of several runs",
    "compare": "tell which system is better on the same rows, and how sure that is",
    "demo": "train SLM and hybrid on built-in data, compare them with the LLM",
    "tokenizer": "train a tokenizer on a corpus",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done; 1: a failure that is not the user's (with its traceback), or failed jobs of a sweep; 2: a mistake of the
    user's, told in one line; 130: interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal's encoding has not is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(arguments)
    except UserError as error:
        print(f"llm2slm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llm2slm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from llm2slm.cli.help import overview

        print(overview(VERBS))
        return 0
    if arguments[0] in ("-V", "--version"):
        from llm2slm import __version__

        print(f"llm2slm {__version__}")
        return 0
    if any(argument in ("-sc", "--shell-completion") for argument in arguments):
        from llm2slm.cli.completion import shell_completion

        print(shell_completion(arguments[1:] if arguments[0] in VERBS else arguments, VERBS))
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}; {hint}")
    if "-h" in rest or "--help" in rest:
        from llm2slm.cli.help import details

        print(details(verb, VERBS[verb], rest))
        return 0
    from llm2slm.cli.launch import launch

    return launch(verb, rest)
