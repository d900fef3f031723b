"""How neurons go: plan, shrink in place, prove, or roll back."""

from demp.surgery.constants import ConstantRules
from demp.surgery.cut import cut
from demp.surgery.live import LiveModel
from demp.surgery.plan import Limits, Plan, plan_cut
from demp.surgery.proving import VerifyOptions
from demp.surgery.record import Record, record_of
from demp.surgery.report import CutReport, LayerCut
from demp.surgery.transaction import execute

__all__ = [
    "ConstantRules",
    "CutReport",
    "LayerCut",
    "Limits",
    "LiveModel",
    "Plan",
    "Record",
    "VerifyOptions",
    "cut",
    "execute",
    "plan_cut",
    "record_of",
]
