"""Transfer rows: inputs without labels, such as a product's own prompts, whose targets come from the teachers."""
