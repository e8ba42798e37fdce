"""Pictures in, numbers and pages out. Knows nothing of the rest of the project."""
