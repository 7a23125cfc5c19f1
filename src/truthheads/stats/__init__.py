"""Numbers with intervals; uses no files and no models."""
