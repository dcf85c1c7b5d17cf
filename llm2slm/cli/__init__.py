"""The command line: `llm2slm VERB [overrides]`. Only this package imports hydra, and only when a verb runs.

`main` (here) parses the verb; `compose` checks the overrides and composes the typed configuration; `launch` runs the
command of the verb once; `sweep` plans the jobs of a sweep and runs them by a launcher of `sweeps`; `job` runs in the
process of a job.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback

from llm2slm import stops
from llm2slm.nearest_names import similar
from llm2slm.ranks import first_process
from llm2slm.shown_text import on_one_line
from llm2slm.types import UserError

VERBS = {
    "train": "train a model (LLM-to-SLM, the SLM alone, or the LLM itself), then evaluate it",
    "evaluate": "generate for a split with a trained model, and score it",
    "calibrate": "find the confidence below which the LLM answers instead of a hybrid, for a quality to keep",
    "generate": "answer a prompt, a file of prompts, or typed prompts",
    "label": "generate training targets for a split with the LLM",
    "encode": "store the LLM representations of a corpus, to train without loading the LLM",
    "benchmark": "time a model, its LLM and other systems in interleaved rounds",
    "costs": "predict speed, memory and break-even length of a pair of models from their configs",
    "judge": "rate the answers of a run, or compare those of two runs, with another model",
    "export": "write a trained model, its model card and its part of the LLM to a folder or the Hub",
    "report": "write one page of tables and plots from the results of several runs",
    "compare": "compare systems on the same rows, with confidence intervals and significance tests",
    "dashboard": "make a W&B workspace and report: quality against latency, quality kept by factor, losses, samples",
    "demo": "train an SLM and a hybrid on built-in data, and compare them with the LLM",
    "tokenizer": "train a tokenizer on a corpus",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: success; 1: internal error (with traceback), or failed jobs of a sweep; 2: user error, reported on one line;
    128 plus its number: ended by a signal (130: Ctrl-C, 143: SIGTERM).
    """
    arguments = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters outside the encoding of the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with stops.raised():
            return _run(arguments)
    except UserError as error:
        print(f"llm2slm: error: {on_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        code = stops.exit_code(error)
        by = "" if code == 128 + signal.SIGINT else f" by {signal.Signals(code - 128).name}"
        if first_process():  # a launcher and a terminal stop all processes
            print(f"llm2slm: interrupted{by}", file=sys.stderr)
        return code
    except BrokenPipeError:  # the process that reads standard output has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from llm2slm.cli.failures import of_machine

        if (line := of_machine(error)) is not None:
            print(f"llm2slm: error: {line}", file=sys.stderr)
            return 2
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
        near = similar(verb, VERBS)
        hint = f"did you mean {near}?" if near else f"one of: {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}; {hint}")
    if "-h" in rest or "--help" in rest:
        from llm2slm.cli.help import details

        print(details(verb, VERBS[verb], rest))
        return 0
    from llm2slm.cli.launch import launch

    return launch(verb, rest)
