"""Text in, text out: prompts, answers, arithmetic and scores, in pure standard-library Python."""
