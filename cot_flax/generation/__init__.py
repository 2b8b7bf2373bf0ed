"""From prompts to text: sampling, beam search, slots that refill."""
