"""Rules as thresholds over measured columns: the registry of them and the engine that applies them."""

from gristmill.curate.rules.engine import Outcome, apply
from gristmill.curate.rules.explain import Row, explain
from gristmill.curate.rules.registry import NEEDS, RULES, Rule

__all__ = ["NEEDS", "RULES", "Outcome", "Row", "Rule", "apply", "explain"]
