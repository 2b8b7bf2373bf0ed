"""What a run minimises: cross entropy and the teacher's top-k KL."""
