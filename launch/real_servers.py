"""What real_servers.sh does in Python: weights for vLLM, and the table's rows of one server."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = "server run exit seconds requests prompt written chains right with_logprobs said"
ASKED = ["--dataset", "stories_smollm2", "--samples", "4", "--max-tokens", "96"]
RUNS = {
    "probe": ["probe"],
    "fu2023": ["sample", "--recipe", "fu2023", "--shots", "3", *ASKED],
    "ho2022": ["sample", "--recipe", "ho2022", *ASKED],
}


def weights(gguf: str, folder: str) -> None:
    """Writes a GGUF file's model as a Hugging Face folder, which vLLM reads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(gguf)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    # What was read from GGUF counts as quantized, which transformers does not write.
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)


def rows(server: str, home: str, url: str, count: str) -> None:
    """Runs `cot-flax teach` against a server as RUNS says and prints a line a run.

    Args:
        server: its name, for files and lines.
        home: the folder of questions, logs and samples.
        url: the server's.
        count: questions to ask.
    """
    folder, server_options = Path(home), ["--model", "smollm2", "--base-url", url]
    questions = folder / "questions.jsonl"
    _write_questions(int(count), questions)
    for run, arguments in RUNS.items():
        samples = folder / f"{server}.{run}.jsonl"
        for old in folder.glob(f"{samples.name}*"):
            old.unlink()
        verb, *others = arguments
        asked = [str(questions)] if verb == "sample" else []
        command = [verb, *asked, *others, "--out", str(samples)]
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "cot_flax.cli", "teach", *command, *server_options],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = f"{time.monotonic() - start:.1f}"
        (folder / f"{server}.{run}.txt").write_text(done.stdout + done.stderr)
        line = [server, run, str(done.returncode), seconds]
        print("\t".join([*line, *said(done.stdout), *counts(samples), _last(done)]), flush=True)


def said(output: str) -> list[str]:
    """Requests, prompt tokens and written ones, as a run says at its end; "-" where it does not."""
    line = next((line for line in output.splitlines() if " samples in " in line), "")
    found = [re.search(rf"([\d,]+) {unit}", line) for unit in ("requests", "prompt", "written")]
    return [number[1].replace(",", "") if number else "-" for number in found]


def counts(samples: Path) -> list[str]:
    """Chains, those that `prepare` would keep by itself, those with log-probabilities."""
    from cot_flax.chains.filtering import Filters, rejection
    from cot_flax.chains.samples import read_samples

    if not samples.exists():
        return ["-"] * 3
    read = list(read_samples(samples))
    right = sum(rejection(sample, Filters()) is None for sample in read)
    return [str(n) for n in (len(read), right, sum(s.logprobs is not None for s in read))]


def _write_questions(count: int, out: Path) -> None:
    """Stories of the embedded world with their rationales, which few-shot recipes show."""
    from cot_flax.lab.world.stories import make_stories
    from cot_flax.lab.world.teacher import reference_rationale

    lines = [
        {
            "question": story.question,
            "answer": str(story.answer),
            "rationale": reference_rationale(story),
        }
        for story in make_stories(count, split="train", seed=0)
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _last(done: subprocess.CompletedProcess) -> str:
    """What a failure says last, or what a run says of lost log-probabilities."""
    lines = done.stderr.strip().splitlines() if done.returncode else done.stdout.splitlines()[1:]
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    verb, *given = sys.argv[1:]
    if verb == "columns":
        print(COLUMNS.replace(" ", "\t"))
    else:
        {"weights": weights, "rows": rows}[verb](*given)
