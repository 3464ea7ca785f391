"""Host side: generated register offsets. Never imports the hardware."""
