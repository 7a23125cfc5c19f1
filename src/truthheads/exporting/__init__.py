"""Write a gate into standard formats: PEFT adapter, checkpoint, GGUF."""
