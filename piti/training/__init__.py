"""Training: what each stage learns (stages), in which order a step happens (loop), and what survives a crash (state)."""
