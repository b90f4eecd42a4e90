"""What this machine can run, and what is missing for what: `luffy doctor`.

`findings` says what a finding is, `machine` looks at the computer, `packages` at the libraries, `recipes` at what a
recipe needs, `trial` lets the built-in miniature answer a question, `show` makes the table.
"""

from luffy.doctor.examination import examine
from luffy.doctor.findings import Finding, State
from luffy.doctor.show import findings_table

__all__ = ["Finding", "State", "examine", "findings_table"]
