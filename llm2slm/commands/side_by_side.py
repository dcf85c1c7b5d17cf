"""Trains several systems at the same time, each in a separate process, for `llm2slm demo`.

The results are those of one training after the other with the same number of threads. Everything that a process prints
is in `train.log` in the folder of its system.
"""

from __future__ import annotations

import io
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO

from rich.console import Console

from llm2slm import runs
from llm2slm.atomic import writing
from llm2slm.child_processes import (
    ERROR,
    INTERRUPTED,
    POLL,
    Child,
    by_signal,
    environment,
    stop,
    stop_requests,
    stop_with_parent,
)
from llm2slm.commands.resume import stored_result
from llm2slm.config import RunConfig
from llm2slm.progress import progress_bar
from llm2slm.runs import curve
from llm2slm.types import UserError

LOG = "train.log"


class Training(Child):
    """The process that trains one system.

    Attributes:
        error: the message of its UserError.
        printed: its lines to show, as (whether an error stream's line, text).
    """

    def __init__(self, name: str, config: RunConfig, folder: Path, threads: int | None, width: int = 80) -> None:
        self.name, self.config, self.folder = name, config, folder
        self.error = ""
        self.printed: queue.SimpleQueue[tuple[bool, str]] = queue.SimpleQueue()
        with writing(folder / LOG):
            folder.mkdir(parents=True, exist_ok=True)
            self._log: TextIO | None = (folder / LOG).open("w", encoding="utf-8", buffering=1)
        self._logging = threading.Lock()
        self._rows: dict[int, dict[str, float]] = {}
        self._shown: set[int] = set()
        request = pickle.dumps((config, str(folder), sys.argv, threads))
        own = environment(threads, COLUMNS=str(width))
        super().__init__(["-m", __name__], own, subprocess.PIPE, subprocess.PIPE, request)
        streams = ((False, self.process.stdout), (True, self.process.stderr))
        self._readers = [threading.Thread(target=self._read, args=each, daemon=True) for each in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, is_error: bool, stream: IO[bytes]) -> None:
        """Copies a stream to the log, and its lines that are not of progress bars or tracebacks to `printed`."""
        traceback = False
        for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="\n"):
            before, redrawn, text = line.rstrip("\r\n").rpartition("\r")
            self._log_line(text)
            traceback = traceback or (is_error and text.startswith("Traceback (most recent call last)"))
            if is_error and text.startswith(ERROR):
                self.error = text.removeprefix(ERROR)
            elif not (redrawn and before.strip()) and not traceback:
                self.printed.put((is_error, text))

    def _log_line(self, text: str) -> None:
        """Writes a line to the log. If that fails, one warning is printed, and the log ends there: the training
        continues, and reports a full disk itself when it writes its files."""
        with self._logging:
            if self._log is None:
                return
            try:
                self._log.write(text + "\n")
            except OSError as error:
                self._close()
                lost = f"llm2slm: warning: {self.folder / LOG}: cannot be written ({error.strerror}); it ends here"
                self.printed.put((True, lost))

    def _close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            with suppress(OSError):  # of lines that could not be written, which `_log_line` has reported
                log.close()

    def ended(self) -> bool:
        """Whether the process has ended, and its output is complete."""
        if self.process.poll() is None:
            return False
        for reader in self._readers:
            reader.join()
        self._close()
        return True

    def failure(self) -> str:
        """The reason why the process failed, on one line."""
        code, log = self.process.returncode, self.folder / LOG
        if self.error:
            return self.error
        if code in INTERRUPTED:
            return f"its training was interrupted; see {log}"
        if code < 0:
            return f"{by_signal(code)}; see {log}"
        last = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()][-1:]
        return f"its training failed ({''.join(last) or f'exit code {code}'}); see {log}"

    def progress(self) -> tuple[int, str]:
        """The number of steps in `metrics.csv`, which counts them from 0, and the tokens per second or the stage."""
        last = max(self._rows, default=0)
        speed = next((row[key] for row in reversed(self._rows.values()) if (key := "train/tokens_per_s") in row), None)
        if not self._rows:
            return 0, "preparing"
        if last + 1 >= self.config.trainer.max_steps:
            return last + 1, "testing"
        return last + 1, "" if speed is None else f"{speed:,.0f} tokens/s"

    def validations(self, final: bool = False) -> list[str]:
        """Lines for the validations since the last call.

        Args:
            final: no row changes any more. Otherwise a row is complete if it is the same as at the last call.
        """
        before, self._rows = self._rows, curve(self.folder / runs.METRICS)
        lines = []
        for step, row in self._rows.items():
            scores = [f"{key} {value:.4g}" for key, value in row.items() if key.startswith("val/")]
            if scores and step not in self._shown and (final or before.get(step) == row):
                self._shown.add(step)
                steps = f"step {step + 1:,} of {self.config.trainer.max_steps:,}"
                lines.append(f"{self.name}: {steps}: {', '.join(scores)}")
        return lines


def train_side_by_side(
    configs: Mapping[str, RunConfig], folder: Path, console: Console, *, at_once: int, threads: int | None
) -> dict[str, runs.System]:
    """Trains and tests each system in its subfolder; prints what they report.

    Ctrl-C and SIGTERM are passed to all processes: after the first one they save their state and stop, after the second
    one they stop at once, after the third one they are killed.

    Args:
        configs: of each system, by name.
        at_once: number of processes at the same time.
        threads: of each process; None: torch's default.

    Returns:
        The trained systems with their test scores.

    Raises:
        UserError: the training of a system failed; the others are stopped.
        KeyboardInterrupt: a signal arrived.
    """
    waiting, running, printed = list(configs), list[Training](), set[str]()
    first, passed = waiting[0], 0
    shown = all(config.trainer.progress for config in configs.values())
    with stop_requests() as arrived, progress_bar(shown=shown, transient=True) as bar:
        bars = {name: bar.add_task(name, total=c.trainer.max_steps, speed="waiting") for name, c in configs.items()}
        try:
            while (waiting and not arrived) or running:
                while waiting and len(running) < at_once and not arrived:
                    name = waiting.pop(0)
                    running.append(Training(name, configs[name], folder / name, threads, console.width))
                time.sleep(POLL)
                if len(arrived) > passed:
                    passed = len(arrived)
                    for each in running:
                        each.kill() if passed > 2 else each.interrupt()
                for each in list(running):
                    ended = each.ended()
                    show(each, console, printed, whole=each.name == first, final=ended)
                    step, speed = each.progress()
                    bar.update(bars[each.name], completed=step, speed=speed)
                    if not ended:
                        continue
                    running.remove(each)
                    if each.process.returncode and not arrived:
                        raise UserError(f"systems.{each.name}: {each.failure()}")
                    if not each.process.returncode:
                        console.print(tested_line(each), markup=False, highlight=False, soft_wrap=True)
        finally:
            stop(running)
    if arrived:
        raise KeyboardInterrupt
    return {name: stored_result(folder / name).systems[0] for name in configs}


def show(training: Training, console: Console, printed: set[str], *, whole: bool, final: bool) -> None:
    """Prints the new lines of a process: messages that no other process printed, and validations.

    Args:
        whole: also print its standard output, which describes the data: of one process, since the data is the same.
    """
    while not training.printed.empty():
        is_error, text = training.printed.get()
        if not is_error and whole:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif is_error and text.strip() and text not in printed:
            printed.add(text)
            print(text, file=sys.stderr, flush=True)
    for line in training.validations(final):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def tested_line(training: Training) -> str:
    """The duration and the test scores of a trained system."""
    result = stored_result(training.folder)
    system = result.systems[0]
    scores = ", ".join(f"{name} {score.value:.2f}" for name, score in system.quality.items())
    return f"{training.name}: trained in {system.notes['training_seconds']:.0f} s; on the test split: {scores}"


def main() -> int:
    """Trains one system: the request is pickled on standard input. Returns the exit code, as the command line's."""
    try:
        config, folder, arguments, threads = pickle.load(sys.stdin.buffer)
        stop_with_parent()
        sys.argv = arguments  # recorded in the result
        import torch

        from llm2slm.commands import silence_libraries, train

        if threads is not None:
            torch.set_num_threads(threads)
        silence_libraries()
        train.run(config, Path(folder), shown=False)
    except UserError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
