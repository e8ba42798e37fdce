"""The deployments driven from outside, as a person does."""
