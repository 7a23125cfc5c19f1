"""SmolLM2 and the two descendants that the package carries as small deltas."""
