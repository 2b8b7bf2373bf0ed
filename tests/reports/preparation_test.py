"""Tests of the report of a preparation."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import cot_flax
from cot_flax.chains import filtering, projection, tally
from cot_flax.chains.preparation import Outcome, Preparation, prepare_question
from cot_flax.reports.preparation import HTML, JSON, figures, page, write
from cot_flax.reports.preparation.figures import summarize
from cot_flax.text.tokenizers import SentencePieceTokenizer

TALLY = {
    "fates": {"kept": 6, "repeated": 1, "wrong_answer": 3},
    "rejected": {"bad_json": 2},
    "questions": 4,
    "kept_chains": {"3": 1, "0": 1, "2": 1, "1": 1},
    "distinct_chains": {"0": 1, "1": 2, "2": 1},
    "kinds": {"soft": 30, "end": 5, "several_tokens": 5},
    "kept_mass": {"19": 24, "9": 6},
    "mass": 27.0,
    "one_hot_chains": 1,
    "target_tokens": {"16": 1, "0": 5},
    "tokens": 50,
    "teachers": {"codex": 6},
    "prompts": 7,
    "worst": [
        {
            "id": "sums-0/1",
            "soft_share": 0.5,
            "positions": [
                ["▁One", [" One"], "soft"],
                ["▁is", ["\n", "is"], "several_tokens"],
                ["▁2", [], "no_token"],
            ],
        }
    ],
}
ONE_HOT = TALLY | {"kinds": {}, "kept_mass": {}, "mass": 0.0, "one_hot_chains": 6, "worst": []}


def manifest(**changes):
    filters = {"rules": "default", "similarity": None, "consistent": False}
    return {
        "vocabulary": "656fea7173816d5f",
        "prompt_hash": "00ff",
        "teachers": {"codex": 6},
        "plan": {
            "inputs": [["/data/samples.jsonl", 2_185_460, 1_700_000_000_000_000_000]],
            "settings": {"filters": filters, "top_k": 5, "alignment": "bytes"},
        },
        "tally": TALLY | changes,
        "files": {"train.tfrecord-00000-of-00001": "abc", "info.train.json": "def"},
    }


class Page(HTMLParser):
    """Checks that tags close in order; gathers words, tags and the titles of elements."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.titles, self.links = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def report(tmp_path):
    """Writes the report of a manifest and returns its page."""

    def make(found):
        (tmp_path / "train.tfrecord-00000-of-00001").write_bytes(bytes(800))
        (tmp_path / "info.train.json").write_bytes(bytes(200))
        write(tmp_path, found)
        return Page((tmp_path / HTML).read_text())

    return make


def test_figures_by_hand():
    found = summarize(manifest(), {"train": 800, "info": 200})
    assert found["records"] == {
        "read": 12,
        "kept": 6,
        "dropped": 4,
        "rejected": 2,
        "dropped_by_reason": {
            "wrong_answer": {"count": 3, "share": 3 / 12},
            "repeated": {"count": 1, "share": 1 / 12},
        },
        "direct": 0,
        "rejected_by_reason": {"bad_json": {"count": 2, "share": 2 / 12}},
    }
    assert list(found["records"]["dropped_by_reason"]) == ["wrong_answer", "repeated"]
    positions = found["positions"]
    assert (positions["total"], positions["soft"], positions["one_hot"]) == (50, 30, 20)
    assert positions["soft_share"] == 0.6
    assert positions["kinds"]["several_tokens"] == {"count": 5, "share": 0.1}
    assert positions["kinds"]["no_logprobs"] == {"count": 10, "share": 0.2}
    assert found["kept_mass"]["mean"] == pytest.approx(0.9)
    assert found["kept_mass"]["mean_tail"] == pytest.approx(0.1)
    assert found["kept_mass"]["bins"] == [0] * 9 + [6] + [0] * 9 + [24]
    assert found["questions"] == {
        "count": 4,
        "without_chains": 1,
        "kept_chains": {"mean": 1.5, "counts": {"0": 1, "1": 1, "2": 1, "3": 1}},
        "distinct_chains": {"mean": 1.0, "counts": {"0": 1, "1": 2, "2": 1}},
    }
    assert found["targets"]["mean_tokens"] == 50 / 6
    assert list(found["targets"]["counts"].items()) == [("0", 5), ("16", 1)]
    assert found["files"] == {
        "bytes": 1000,
        "bytes_per_token": 20.0,
        "sizes": {"train": 800, "info": 200},
    }


def test_figures_of_a_real_preparation_add_up(samples, vocabulary):
    outcome = Outcome()
    tokenizer = SentencePieceTokenizer(vocabulary.sp_model, extra_ids=0)
    for id in dict.fromkeys(sample.id for sample in samples):
        of_question = [sample for sample in samples if sample.id == id]
        rules = ["default"] * len(of_question)
        prepare_question(of_question, rules, tokenizer, Preparation(), outcome)
    found = summarize(manifest(**json.loads(json.dumps(outcome.tally.to_json()))), {})
    records, positions = found["records"], found["positions"]
    assert records["read"] == len(samples) == records["kept"] + records["dropped"]
    assert records["kept"] == len(outcome.kept) > 0
    assert positions["total"] == sum(len(record.targets) for record in outcome.kept)
    assert positions["total"] == sum(entry["count"] for entry in positions["kinds"].values())
    assert positions["soft"] == sum(found["kept_mass"]["bins"]) > 0
    chains = found["questions"]["kept_chains"]
    assert chains["mean"] * found["questions"]["count"] == pytest.approx(records["kept"])


def test_page_and_json_say_the_same(report, tmp_path):
    html = report(manifest())
    assert "12 read = 6 kept + 4 dropped + 2 rejected" in html.text
    assert f"wrong_answer 3 25.0% {page.REASONS['wrong_answer']}" in html.text
    assert "30 of 50 target positions (60.0%) are soft" in html.text
    assert "1 of 6 chains have no log-probabilities" in html.text
    assert "Mean 0.900:" in html.text and "the tail, is 0.100 on average" in html.text
    assert "Without a kept chain: 1 of them (25.0%)" in html.text
    assert "2, 1.0 kB together" in html.text
    assert json.loads((tmp_path / JSON).read_text()) == summarize(
        manifest(), {"train.tfrecord-00000-of-00001": 800, "info.train.json": 200}
    )


def test_page_needs_nothing_beside_it(report):
    html = report(manifest())
    assert not {"script", "link", "img"} & set(html.tags) and html.links == []
    assert html.tags.count("svg") == 4
    assert "/data/samples.jsonl" in html.words and "2.2 MB, of 2023-11-14 22:13 UTC" in html.words
    assert "similarity not set" in html.text and "consistent no" in html.text


def test_tokens_stand_over_pieces(report):
    html = report(manifest())
    assert "sums-0/1 50.0% soft ▁One ▁One ⏎ is ▁is + ▁2 ∅" in html.text
    shown = [title.partition(":")[0] for title in html.titles]
    legend, example = shown[:3], shown[3:]
    assert legend == ["soft", "no token", "several tokens"]
    assert example == ["soft", "several tokens", "no token"]


def test_texts_are_escaped(report):
    found = manifest(
        fates={"kept": 6, "<s>": 1},
        worst=[
            {
                "id": "<b>&amp;</b>",
                "question": "Is 1 < 2 & <i>2</i>?",
                "soft_share": 0.0,
                "positions": [["<u>", ["<script>", "\ud83d"], "other_string"]],
            }
        ],
    )
    found["plan"]["inputs"][0][0] = "<q>.jsonl"
    found["teachers"] = {"<em>": 6}
    html = report(found)
    texts = ("<s>", "<b>&amp;</b>", "<u>", "<script>", "?", "<q>.jsonl", "<em>")
    assert set(texts) <= set(html.words)
    assert "0.0% soft · Is 1 < 2 & <i>2</i>?" in html.words
    assert not {"s", "b", "u", "script", "q", "em"} & set(html.tags[html.tags.index("article") :])


def test_what_the_vocabulary_lacks_is_shown(report):
    assert "vocabulary lacks" not in report(manifest()).text
    changes = {
        "unknown": {"é": 2, "<": 1},
        "unknown_chains": 2,
        "unknown_dropped": {chr(0x4E00 + i): 1 for i in range(40)},
        "unknown_in_questions": {"你": 3},
        "unknown_questions": 2,
        "replaced": {"\\boxed": 4},
    }
    text = report(manifest(**changes)).text
    assert "2 of 6 kept chains teach that piece." in text
    assert "Unknown in the targets 3: é 2, < 1" in text
    assert "Unknown in dropped chains 40: " in text and ", 10 others" in text
    assert "Unknown in the questions 3: 你 3" in text
    assert "2 of the questions show it instead" in text
    assert "Written otherwise in the targets 4: \\boxed 4" in text


def test_wrong_chains_that_were_kept_are_pointed_out(report):
    assert "wrong equation" not in report(manifest()).text
    about = {"id": "sums-3/1", "question": "One and one?"}
    worst = [TALLY["worst"][0] | {"wrong_steps": ["3 * 2 = 7"]}]
    changes = {"inconsistent_chains": 12, "inconsistent": [about | {"steps": ["1 + 1 = 3"]}]}
    text = report(manifest(**changes, worst=worst)).text
    assert "12 of 6 kept chains hold an equation that is wrong" in text
    assert "sums-3/1 1 + 1 = 3 One and one?" in text
    assert "50.0% soft Wrong: 3 * 2 = 7" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (ONE_HOT, "all 50 target positions are one-hot. The store serves cross entropy, not KL."),
        (ONE_HOT, "No chain has log-probabilities, so that nothing was aligned."),
        ({"fates": {"kept": 6}, "rejected": {}}, "Nothing was dropped or rejected."),
        ({"kept_chains": {"1": 2, "2": 2}}, "Questions: 4. Each has a kept chain."),
        (
            ONE_HOT | {"one_hot_chains": 4, "direct": 2},
            "2 of the kept records have no chain: the student learns their answers alone.",
        ),
        (
            ONE_HOT | {"one_hot_chains": 4, "direct": 2},
            "No chain has log-probabilities, so that all 50 target positions are one-hot.",
        ),
        (
            {"kinds": {"end": 5, "other_string": 35}, "kept_mass": {}, "mass": 0.0},
            "None of the 50 target positions is soft, though 5 chains have log-probabilities.",
        ),
    ],
)
def test_empty_parts_are_said(report, changes, said):
    html = report(manifest(**changes))
    assert said in html.text
    assert html.tags.count("svg") == 4 - (not changes.get("kinds", TALLY["kinds"]).get("soft"))


def test_unknown_reasons_show_their_name(report):
    html = report(manifest(fates={"kept": 6, "new_rule": 4}))
    assert "new_rule 4 33.3% Rejected" in html.text


def test_every_reason_and_kind_has_a_meaning():
    rules = (filtering._FIRST, filtering._LAST, *filtering.RULES.values())
    named = {name for group in rules for name, _ in group}
    folder = Path(cot_flax.__file__).parent / "chains"
    for file in ("readers", "records", "samples", "selection", "preparation"):
        source = (folder / f"{file}.py").read_text()
        named |= set(re.findall(r'(?:(?:reject|BadRecord)\(\s*|reason = |return )"(\w+)"', source))
    assert {"repeated", "too_long", "columns", "lengths_differ"} <= named
    named |= {"kim2023_f5_repeated", "unbalanced", "over_limit", tally.UNKNOWN_CHARACTERS}
    assert named <= page.REASONS.keys()
    assert set(projection.KINDS) < page.KINDS.keys()


def test_histogram_of_numbers():
    found = figures.of_numbers({"3": 8, "0": 2})
    assert [bar.label for bar in found.bars] == ["0", "1", "2", "3"]
    assert [bar.height for bar in found.bars] == [0.25, 0.0, 0.0, 1.0]
    assert found.ticks == [(0.5, "0"), (1.5, "1"), (2.5, "2"), (3.5, "3")]
    assert len(figures.of_numbers({}).bars) == 1


def test_histogram_of_ranges():
    found = figures.of_ranges({"16": 3, "32": 1}, 16, str)
    assert [bar.label for bar in found.bars] == [
        "0 to below 16",
        "16 to below 32",
        "32 to below 48",
    ]
    assert found.ticks == [(0, "0"), (1, "16"), (2, "32"), (3, "48")]


def test_histogram_of_many_numbers_is_coarser():
    found = figures.of_numbers({str(i): 1 for i in range(100)} | {"99": 5})
    assert [bar.count for bar in found.bars] == [2] * 49 + [6]
    assert found.bars[-1].label == "98 to below 100"
    assert [bar.written for bar in found.bars] == [False] * 49 + [True]
    assert found.ticks == [(0, "0"), (10, "20"), (20, "40"), (30, "60"), (40, "80"), (50, "100")]


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (page.percent, 0.0004, "<0.1%"),
        (page.percent, 0.0, "0.0%"),
        (page.percent, None, "–"),
        (page.size, 999, "999 bytes"),
        (page.size, 1000, "1.0 kB"),
        (page.size, 2_500_000, "2.5 MB"),
        (page.size, 3e15, "3000.0 TB"),
        (page.setting, True, "yes"),
        (page.setting, 1, "1"),
        (page.visible, " a\n\t\x00", "▁a⏎⇥␀"),
    ],
)
def test_how_values_are_written(write, value, text):
    assert write(value) == text


def test_teachers_random_and_dropped_chains_are_shown(report):
    sources = {"codex (fu2023), scored by <b>": {"kept": 4, "repeated": 4}, "human": {"kept": 2}}
    random = TALLY["worst"][0] | {"id": "sums-9/9", "source": "human"}
    dropped = {
        "id": "sums-1/0",
        "reason": "wrong_answer",
        "source": "human",
        "question": "1 + 1?",
        "gold_answer": "2",
        "read": "3",
        "text": "It is 3 <i>",
        "characters": 5000,
    }
    shown = report(
        manifest(
            sources=sources,
            source_scored={"codex (fu2023), scored by <b>": 3},
            source_tokens={"codex (fu2023), scored by <b>": 40, "human": 10},
            source_soft={"codex (fu2023), scored by <b>": 30},
            random=[random, TALLY["worst"][0]],
            dropped_examples=[dropped],
        )
    )
    assert "codex (fu2023), scored by <b> dropped: repeated 4 8 4 50.0% 3 75.0%" in shown.text
    assert "human 2 2 100.0% 0 0.0%" in shown.text
    assert shown.words.count("sums-9/9") == shown.words.count("sums-0/1") == 1
    assert "wrong_answer: sums-1/0" in shown.text
    assert "Right answer 2 Answer read 3 Chain It is 3 <i> … 5,000 characters" in shown.text
