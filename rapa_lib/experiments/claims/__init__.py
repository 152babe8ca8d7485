"""Claims put to the test: a study's tables and the rules in, one verdict per claim out."""

from rapa_lib.experiments.claims.before import written_before
from rapa_lib.experiments.claims.judge import VERDICTS, judge_claims, verdicts
from rapa_lib.experiments.claims.present import (
    endpoints_html,
    measured,
    verdicts_html,
    verdicts_markdown,
)
from rapa_lib.experiments.claims.rules import Arm, Claim, Endpoint, Gate, Rules, read_claims

__all__ = [
    "VERDICTS",
    "Arm",
    "Claim",
    "Endpoint",
    "Gate",
    "Rules",
    "endpoints_html",
    "judge_claims",
    "measured",
    "read_claims",
    "verdicts",
    "verdicts_html",
    "verdicts_markdown",
    "written_before",
]
