from ._finding import Finding as Finding
from ._plan import planned_points as planned_points
from ._schedule_audit import ScheduleAudit as ScheduleAudit
from ._situation import Situation as Situation
from ._situation import situations as situations
