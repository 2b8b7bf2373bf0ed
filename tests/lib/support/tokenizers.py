"""Small BPE vocabularies of Hugging Face, trained where they are used; SentencePiece variants."""

import json

import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

END, START = "<|end|>", "<|start|>"
CORPUS = [
    "Natalia sold 48/2 = 24 clips in May. The answer is 72",
    "Tom has 12 apples and 3.5 pears. Together 3 + 4 = 7.\nThe answer is 7",
    "naïve café, 5 € each, 日本",
] * 5


def byte_level(
    folder, *, normalizer=None, prefix=False, regex=None, corpus=CORPUS, size=320, special=(END,)
):
    """Writes GPT-2's kind: every byte is a letter."""
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex is None)
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = bytes_of, decoders.ByteLevel()
    if regex is not None:
        split = pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return write(folder, json.loads(made.to_str()), eos_token=END)


def byte_fallback(folder, *, metaspace=False, corpus=CORPUS[:2]):
    """Writes Llama 2's kind: pieces of characters, and 256 of bytes for all other characters."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(marks)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    if not metaspace:  # for the training alone: no piece reaches over a space
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    made.train_from_iterator([text.replace("\n", " ") for text in corpus], trainer)
    settings = json.loads(made.to_str())
    if not metaspace:
        settings["pre_tokenizer"] = None
    pieces = settings["model"]["vocab"]
    pieces |= {f"<0x{byte:02X}>": len(pieces) + byte for byte in range(256)}
    tokens = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return write(folder, settings, **tokens)


def write(folder, settings, **tokens):
    """Writes both files of a tokenizer that `AutoTokenizer` and `open_tokenizer` read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def world_without(characters, **special_ids):
    """The world's SentencePiece model without some characters, as bytes; T5's lacks `<{}\\^~`.

    Args:
        characters: no piece of the model holds one of them.
        **special_ids: `pad`, `end` or `unk`: the place among the pieces of what is so called; -1
            leaves a pad or an end out.
    """
    proto = ModelProto.FromString(VOCABULARY_PATH.read_bytes())
    names = {"pad": "<pad>", "end": "</s>", "unk": "<unk>"}
    special = {piece.piece: piece for piece in proto.pieces[:3]}
    pieces = [p for p in proto.pieces[3:] if not set(characters) & set(p.piece)]
    moved = {role: special_ids.get(role, at) for at, role in enumerate(names)}
    for role, at in sorted(moved.items(), key=lambda item: item[1]):
        if at >= 0:
            pieces.insert(at, special[names[role]])
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    return proto.SerializeToString(deterministic=True)
