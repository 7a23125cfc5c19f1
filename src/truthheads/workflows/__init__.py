"""Several stages in one command: ground, reproduce, the demo, and making pairs."""
