"""Which rows are valid; all others are quarantined with a reason.

The rule is SQL, in `sql/quarantine_reason.sql`. DuckDB and Spark run it; the kernel counts only ids
that are certainly valid and leaves all others to SQL.
"""

from __future__ import annotations

LONGEST_ID = 255
"""Characters of the longest valid id of an organization or a sensor."""

BLANKS = "".join(map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
                           0x2028, 0x2029, 0x202F, 0x205F, 0x3000)))  # fmt: skip
"""Every white space character of Unicode: an id of nothing else is blank."""
