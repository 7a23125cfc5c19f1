"""Truth Scores: read what every head puts out, fit the probes, attach uncertainty."""
