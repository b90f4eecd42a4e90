"""What a run needs before it is started: memory by part, time and cost, and what to change so that it fits.

`shape` reads a model's sizes from its configuration, `devices` has the table of devices, `memory` and `work` are the
arithmetic, `adapter` says what differs where one is trained, `estimate` puts a plan together, `remedies` tries settings
until it fits, `show` makes the tables. No torch.
"""

from luffy.planning.devices import DEVICES, Device, find_device, this_machine
from luffy.planning.estimate import Plan, make_plan
from luffy.planning.memory import Memory, estimate_memory
from luffy.planning.remedies import Remedy, find_adapter, find_remedies
from luffy.planning.shape import ModelShape, is_at_hand, read_shape
from luffy.planning.show import plan_tables

__all__ = [
    "DEVICES",
    "Device",
    "Memory",
    "ModelShape",
    "Plan",
    "Remedy",
    "estimate_memory",
    "find_adapter",
    "find_device",
    "find_remedies",
    "is_at_hand",
    "make_plan",
    "plan_tables",
    "read_shape",
    "this_machine",
]
