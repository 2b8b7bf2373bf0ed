"""Trainers of others that cot-flax runs under."""
