"""Alignment and projection of real teachers' chains, against a plain Python dynamic program.

    python benchmarks/alignment.py --data ../shared/data

The chains are 52 of code-davinci-002 (top-5 probabilities) and 256 human solutions that
SmolLM2-135M-Instruct scored (top-5 log-probabilities); the student reads T5's vocabulary. One core.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from harness import ratios, record, spread, take_turns

from cot_flax.chains.alignment import align, align_by_bytes
from cot_flax.chains.codex import read_codex_dump
from cot_flax.chains.projection import KINDS, project_top_k
from cot_flax.chains.samples import Logprobs
from cot_flax.text.tokenizers import Tokenizer, open_tokenizer

K = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    tokenizer = open_tokenizer(options.data / "t5_vocab" / "spiece.model")
    for text in ("warm up", "a second text"):
        tokenizer.pieces(text)
    result = {"what": "samples a second on one core, K = 5, T5 vocabulary"}
    for name, chains in read_chains(options.data / "teacher").items():
        result[name] = compare(chains, tokenizer, options.rounds)
    record("alignment", result)


def read_chains(folder: Path) -> dict[str, list[tuple[str, Logprobs]]]:
    codex = read_codex_dump(folder / "gsm8k_train_codex_top5.jsonl")
    chains = [(sample.text, sample.logprobs) for sample in codex]
    smollm2 = (folder / "smollm2_gsm8k_train_top5.jsonl").read_text().splitlines()
    return {"codex": chains, "smollm2": [scored(json.loads(line)) for line in smollm2]}


def scored(record: dict) -> tuple[str, Logprobs]:
    """A record's text and log-probabilities, without its end-of-text token."""
    names = ("tokens", "token_logprobs", "top_logprobs")
    values = (tuple(record["logprobs"][name][:-1]) for name in names)
    return record["completion"], Logprobs(*values)


def compare(chains, tokenizer: Tokenizer, rounds: int) -> dict:
    def ours(aligned, rule="fu2023"):
        for text, logprobs in chains:
            pieces = tokenizer.pieces(text)
            project(aligned(logprobs.tokens, pieces), logprobs, pieces, tokenizer, rule)

    contenders = {
        "bytes, rule of [1]": lambda: ours(align_by_bytes),
        "bytes, paths": lambda: ours(align_by_bytes, "paths"),
        "dynamic program of [1]": lambda: ours(lambda t, p: align(t, p.strings)),
        "plain Python": lambda: plain(chains, tokenizer),
    }
    seconds = take_turns(contenders, rounds)
    report = {"samples": len(chains), "tokens": sum(len(p.tokens) for _, p in chains)}
    for name, times in seconds.items():
        report[name] = {
            "samples_per_second": spread([len(chains) / t for t in times]),
            "times_as_fast_as_plain_python": ratios(seconds["plain Python"], times),
        }
    report["bytes, rule of [1]"] |= kept(chains, tokenizer, align_by_bytes, "fu2023")
    report["bytes, paths"] |= kept(chains, tokenizer, align_by_bytes, "paths")
    report["dynamic program of [1]"] |= kept(
        chains, tokenizer, lambda t, p: align(t, p.strings), "fu2023"
    )
    return report


def project(alignment, logprobs, pieces, tokenizer: Tokenizer, rule: str):
    end_id = tokenizer.special_ids.end
    return project_top_k(alignment, logprobs, pieces.ids, tokenizer, k=K, rule=rule, end_id=end_id)


def kept(chains, tokenizer: Tokenizer, aligned, rule: str) -> dict:
    """Share of soft positions and the mean mass kept there."""
    kinds, masses = np.zeros(len(KINDS), int), []
    for text, logprobs in chains:
        pieces = tokenizer.pieces(text)
        alignment = aligned(logprobs.tokens, pieces)
        rows = project(alignment, logprobs, pieces, tokenizer, rule)
        kinds += np.bincount(rows.kinds_T, minlength=len(KINDS))
        masses.append(rows.kept_mass_T[rows.soft_T])
    return {
        "soft_share": float(kinds[0] / kinds.sum()),
        "mass_kept_where_soft": float(np.concatenate(masses).mean()),
        "positions": dict(zip(KINDS, kinds.tolist(), strict=True)),
    }


def plain(chains, tokenizer: Tokenizer) -> None:
    """Paper [1]'s alignment and rule in lists and dictionaries, as one would write them down."""
    vocabulary = {tokenizer.id_to_piece(i): i for i in range(3, tokenizer.vocab_size)}
    for text, logprobs in chains:
        pieces = tokenizer.pieces(text)
        alignment = plain_alignment(logprobs.tokens, pieces.strings)
        for row, piece, own in zip(alignment, pieces.strings, pieces.ids, strict=True):
            plain_row(row, logprobs, piece, own, vocabulary)


def plain_alignment(tokens, pieces) -> list[list[int]]:
    infinity = float("inf")
    f = [[infinity] * (len(pieces) + 1) for _ in range(len(tokens) + 1)]
    f[0][0] = 0
    for i, token in enumerate(tokens, 1):
        for j, piece in enumerate(pieces, 1):
            cost = plain_distance(token.replace(" ", ""), piece.replace("\u2581", ""))
            f[i][j] = cost + min(f[i - 1][j], f[i][j - 1], f[i - 1][j - 1])
    i, j, rows = len(tokens), len(pieces), [[] for _ in pieces]
    while i and j:
        rows[j - 1].append(i - 1)
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(steps, key=lambda cell: f[cell[0]][cell[1]])
    return [row[::-1] for row in rows]


def plain_distance(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def plain_row(row, logprobs, piece, own, vocabulary) -> dict[int, float]:
    if len(row) == 1 and logprobs.tokens[row[0]].replace(" ", "\u2581") == piece:
        entries = {piece: logprobs.token_logprobs[row[0]]}
        for token, logprob in logprobs.top_logprobs[row[0]].items():
            entries.setdefault(token.replace(" ", "\u2581"), logprob)
        return {vocabulary[p]: v for p, v in entries.items() if p in vocabulary}
    return {own: 0.0}


if __name__ == "__main__":
    main()
