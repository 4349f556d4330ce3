"""Trains a byte-level BPE tokenizer and writes it as a tokenizer.json in the layout of Llama 3."""

import re
from collections import Counter

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

# Llama 3's pattern, as written to the file; the second one is the same for the ASCII text that it is trained on.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ASCII_PATTERN = re.compile(PATTERN.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9").replace("]?A-Za-z+", "]?[A-Za-z]+").replace("|0-9{1,3}", "|[0-9]{1,3}"), re.ASCII)


def byte_alphabet():
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in, spare = {}, 256
    for byte in range(256):
        stand_in[byte] = chr(byte if byte in printable else spare)
        spare += byte not in printable
    return stand_in


def pieces(text):
    return ASCII_PATTERN.findall(text)


def train(texts, vocab_size):
    """The merges, in order. The vocabulary is the 256 bytes, one token for each merge, and the two special tokens."""
    stand_in = byte_alphabet()
    counts = Counter()
    for text in texts:
        assert text.isascii()
        counts.update(pieces(text))
    words = sorted((piece, count) for piece, count in counts.items())
    split = [[stand_in[byte] for byte in piece.encode("utf-8")] for piece, _ in words]
    frequency = [count for _, count in words]
    pairs, where = Counter(), {}
    for at, symbols in enumerate(split):
        for pair in zip(symbols, symbols[1:]):
            pairs[pair] += frequency[at]
            where.setdefault(pair, set()).add(at)
    merges = []
    while len(merges) < vocab_size - 256 - 2:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if pairs[best] < 2:
            raise ValueError(f"the text has no {vocab_size} tokens in it")
        merges.append(best)
        for at in sorted(where[best]):
            before = split[at]
            after = merge(before, best)
            for pair in zip(before, before[1:]):
                pairs[pair] -= frequency[at]
            for pair in zip(after, after[1:]):
                pairs[pair] += frequency[at]
                where.setdefault(pair, set()).add(at)
            split[at] = after
        del pairs[best], where[best]
    return merges


def merge(symbols, pair):
    merged, at = [], 0
    while at < len(symbols):
        if at + 1 < len(symbols) and (symbols[at], symbols[at + 1]) == pair:
            merged.append(symbols[at] + symbols[at + 1])
            at += 2
        else:
            merged.append(symbols[at])
            at += 1
    return merged


def encode(text, merges):
    """The tokens of a text, for statistics; ranks maps a pair to its place."""
    stand_in = byte_alphabet()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    known = {}
    tokens = []
    for piece in pieces(text):
        if piece not in known:
            symbols = [stand_in[byte] for byte in piece.encode("utf-8")]
            while len(symbols) > 1:
                best = min(zip(symbols, symbols[1:]), key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                symbols = merge(symbols, best)
            known[piece] = symbols
        tokens += known[piece]
    return tokens


def tokenizer_json(merges):
    vocabulary = list(byte_alphabet().values()) + [left + right for left, right in merges]
    begin, end = len(vocabulary), len(vocabulary) + 1

    def special(number, content):
        return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def template(*parts):
        return [{"SpecialToken": {"id": BEGIN, "type_id": kind}} if part is None else {"Sequence": {"id": part, "type_id": kind}} for part, kind in parts]

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(begin, BEGIN), special(end, END)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [
            {**byte_level, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": template((None, 0), ("A", 0)),
                "pair": template((None, 0), ("A", 0), (None, 1), ("B", 1)),
                "special_tokens": {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}},
            },
        ]},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": True, "vocab": {token: number for number, token in enumerate(vocabulary)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def tokenizer_config():
    return {
        "add_bos_token": True, "bos_token": BEGIN, "clean_up_tokenization_spaces": False, "eos_token": END, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 256, "tokenizer_class": "PreTrainedTokenizerFast",
    }


def special_tokens_map():
    return {"bos_token": BEGIN, "eos_token": END}
