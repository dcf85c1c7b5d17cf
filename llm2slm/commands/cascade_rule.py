"""The key `cascade`: a threshold, or the folder of a calibration, whose threshold is for the weights that it names."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm.decoding.cascade import Rule
from llm2slm.models.saving import own_fingerprint
from llm2slm.types import Confidence, UserError

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibrated:
    """A rule, and the fingerprints of the hybrid and the LLM that it was calibrated for; {}: it was given as a number.

    Attributes:
        given: the value of the key.
    """

    given: str
    rule: Rule
    weights: dict[str, str] = field(default_factory=dict)

    def check(self, hybrid: LLM2SLM, llm: LLM2SLM) -> None:
        """Refuses models of other weights.

        Raises:
            UserError: names the model.
        """
        for role, model in (("hybrid", hybrid), ("llm", llm)):
            if self.weights and self.weights.get(role) != (found := own_fingerprint(model)):
                raise UserError(
                    f"cascade={self.given}: was calibrated for another {'LLM' if role == 'llm' else role} (fingerprint "
                    f"{self.weights.get(role)}; this one has {found}); run llm2slm calibrate run=RUN for this one"
                )


def read_rule(given: str | None) -> Calibrated:
    """The rule that the key `cascade` names.

    Raises:
        UserError: the key is missing, no number and no folder of a calibration, or its file cannot be read.
    """
    if given is None:
        raise UserError("decoding=cascade needs cascade=DIR, a folder that llm2slm calibrate run=RUN wrote, or a "
                        "threshold of the mean log-probability, as cascade=-0.35")  # fmt: skip
    try:
        threshold = float(given)
    except ValueError:
        return _read(given)
    if math.isnan(threshold):
        raise UserError(f"cascade={given}: is no threshold; give a number, -inf or inf")
    return Calibrated(given, Rule(threshold))


def _read(given: str) -> Calibrated:
    path = Path(given) / FILE
    if not path.is_file():
        raise UserError(f"cascade={given}: neither a number nor a folder with {FILE}; give a threshold, or a folder "
                        "that llm2slm calibrate wrote")  # fmt: skip
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rule = Rule(float(found["threshold"]), Confidence(found["confidence"]))
        weights = {role: str(found["weights"][role]) for role in ("hybrid", "llm")}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: not a calibration ({type(error).__name__}: {error}); run llm2slm calibrate again"
                        ) from None  # fmt: skip
    if math.isnan(rule.threshold):
        raise UserError(f"{path}: threshold is no number; run llm2slm calibrate again")
    return Calibrated(given, rule, weights)


def number_or_text(value: float) -> float | str:
    """A number as JSON has it; infinities, which JSON lacks, as "inf" and "-inf"."""
    return str(value) if math.isinf(value) else value


def as_json(value: Any) -> Any:
    """Plain containers with every number as `number_or_text`."""
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return number_or_text(value) if isinstance(value, float) else value
