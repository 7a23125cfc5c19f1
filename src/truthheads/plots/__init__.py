"""Altair charts of heads."""
