"""Numbers with intervals; knows no files and no models."""
