"""Weights & Biases: one run per command, online if the user is logged in, else offline.

An offline run is uploaded by the `wandb sync` command that `close` returns. W&B keeps files outside the run's folder,
below the home folder (staged artifacts, caches, settings); here they are in the folder of the run, so that an
unwritable or full home folder has no effect, and `wandb sync` finds the artifacts.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2slm.atomic import write_text, writing
from llm2slm.config import LoggerConfig
from llm2slm.tracking.tracker import Facts, Table, Tracker
from llm2slm.types import UserError

STEP = "trainer/global_step"
"""The horizontal axis of curves, as of Lightning's WandbLogger."""
MOST_ROWS = 10_000
"""Rows of a table that W&B shows; of a longer one, the last ones are logged."""
CONNECT_SECONDS = 60.0
FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config"}
"""Variables with W&B's folders outside the run, and their names in the folder `wandb`."""


class WandbRun(Tracker):
    """A W&B run. Opening it raises UserError if W&B refuses to start."""

    name = "wandb"

    def __init__(self, cfg: LoggerConfig, facts: Facts) -> None:
        super().__init__(cfg, facts)
        self._before = _environment()
        try:
            self._run = self._open()
        except BaseException:
            _restore(self._before)
            raise

    def _open(self) -> Any:
        import wandb

        if wandb.run is not None:  # a second run would be part of it
            raise UserError(f"W&B run {wandb.run.id} is still open in this process; call wandb.finish() first")
        folder = self.facts.folder if self.facts.kept else Path(os.environ.get("WANDB_DIR") or self.facts.folder)
        folder = folder.absolute()  # W&B's service process may have another working directory
        with writing(folder):
            (folder / "wandb").mkdir(parents=True, exist_ok=True)
        for variable, inner in FOLDERS.items():
            if variable != "WANDB_CONFIG_DIR" or not _home_is_writable():
                os.environ.setdefault(variable, str((folder / "wandb" / inner).absolute()))
        mode, identity = self._mode(), self._run_id(folder)
        try:
            run = self._init(mode, folder, identity)
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            if mode != "online" or self.cfg.mode == "online":
                raise UserError(
                    f"W&B did not start ({reason}); run `wandb login`, or set logger.mode=offline"
                ) from None
            print(f"llm2slm: warning: W&B did not start online ({reason}); the run is logged offline", file=sys.stderr)
            wandb.teardown()  # its service process still holds the id of the run
            run = self._init("offline", folder, identity)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    def _init(self, mode: Any, folder: Path, identity: str) -> Any:
        import wandb

        facts, swept = self.facts, _agent()
        settings = wandb.Settings(
            silent=mode != "online",
            quiet=True,
            console="off",
            disable_job_creation=True,
            disable_git=True,  # its facts are in the config; W&B would also upload the difference to the commit
            x_disable_meta=True,  # it has the whole command line, which may contain secrets
            init_timeout=CONNECT_SECONDS,
        )
        return wandb.init(
            name=facts.name,
            project=_of_variable("project", self.cfg.project),
            entity=_of_variable("entity", self.cfg.entity),
            group=facts.group,
            job_type=facts.verb,
            tags=facts.tags,
            dir=folder,
            id=identity,
            resume=None if swept else "allow",
            config=facts.config,
            mode=mode,
            save_code=False,
            settings=settings,
        )

    def _mode(self) -> str:
        """The mode of wandb.init: of `auto` the one that the environment sets, else online if logged in."""
        given = os.environ.get("WANDB_MODE", "")
        if self.cfg.mode != "auto":
            return self.cfg.mode
        if given in ("online", "offline", "disabled"):
            return given
        return "online" if logged_in() else "offline"

    def _run_id(self, folder: Path) -> str:
        """The id: a new one; the previous one when resuming, so that both parts form one run; that of a W&B agent."""
        path = folder / "wandb" / "run-id"
        if self.facts.resumed and path.is_file():
            return path.read_text(encoding="utf-8").strip()
        identity = (_agent() and os.environ.get("WANDB_RUN_ID")) or secrets.token_hex(4)
        if self.facts.kept:
            write_text(path, identity)
        return identity

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, STEP: step})

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def table(self, name: str, table: Table, step: int | None = None) -> None:
        import wandb

        rows = [list(row) for row in table.rows[-MOST_ROWS:]]
        logged = wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)
        self._run.log({name: logged} | ({} if step is None else {STEP: step}))

    def files(self, name: str, kind: str, files: Mapping[str, Path | str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{name}-{kind}", kind)
        for inner, content in files.items():
            if isinstance(content, Path):
                artifact.add_file(str(content), name=inner)
            else:
                with artifact.new_file(inner, encoding="utf-8") as file:
                    file.write(content)
        self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> list[str]:
        run, lines = self._run, []
        try:
            place, identity = Path(run.settings.wandb_dir), run.id
            offline = run.settings.mode == "offline"
            url = None if offline else run.url
            parts = sorted(place.glob(f"offline-run-*-{identity}"))
            run.finish(exit_code=int(failed))
            if offline and parts:
                lines.append(f"W&B run {identity}, offline; to upload it: wandb sync {shlex.join(map(str, parts))}")
            elif url:
                lines.append(f"W&B run {run.name}: {url}")
        finally:
            _restore(self._before)
        return lines


def logged_in() -> bool:
    """Whether W&B has credentials: in the environment, in .netrc, or in its settings."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.Settings()
    base = os.environ.get("WANDB_BASE_URL") or settings.base_url
    return bool(settings.api_key or wbauth.read_netrc_auth(host=base))


def _agent() -> bool:
    """Whether an agent of a W&B sweep started this process; it sets the project and the id of the run."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def _of_variable(key: str, value: str | None) -> str | None:
    """The value of a key; its default is replaced by the variable of W&B, and every value by that of an agent."""
    found = os.environ.get(f"WANDB_{key.upper()}")
    return found if found and (_agent() or value == getattr(LoggerConfig(), key)) else value


def _home_is_writable() -> bool:
    home = Path.home()
    return os.access(home, os.W_OK | os.X_OK)


def _environment() -> dict[str, str]:
    """W&B's variables without WANDB_SERVICE, the address of its service process, which later runs reuse."""
    return {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and k != "WANDB_SERVICE"}


def _restore(before: Mapping[str, str]) -> None:
    for key in _environment():
        del os.environ[key]
    os.environ.update(before)
