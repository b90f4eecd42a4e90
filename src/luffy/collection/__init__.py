"""Collect traces from a teacher behind a server: `luffy data collect`.

`journal` keeps every answer as it comes in, so that nothing is asked twice; `collect` asks, verifies and writes.
"""

from luffy.collection.collect import CollectionReport, Collector, TeacherSettings

__all__ = ["CollectionReport", "Collector", "TeacherSettings"]
