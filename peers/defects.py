"""What is wrong, one sentence a defect; `records` says which property shows it."""

DEFECTS: dict[str, str] = {}
