"""Names of the files that ``evaluate`` writes and ``report`` reads."""

SUMMARY, SETTINGS = "summary.json", "run.json"

PLAIN = "none"

GUARD = "neutral"
