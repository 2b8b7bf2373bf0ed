"""What a person reads: HTML pages, terminal tables, the model card."""
