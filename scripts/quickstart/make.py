#!/usr/bin/env python3
"""
Writes all that the quickstart is made of, the same bytes for the same seed:

    OUT/task/train.jsonl, held_out.jsonl, train_shuffled.jsonl     the task (task.py)
    OUT/base/tokenizer.json, tokenizer_config.json, special_tokens_map.json
    CORPUS                                                          what the base is pre-trained on (corpus.py), one {"text"} a line

Python 3.9 or newer, nothing else. make.sh runs this and then pre-trains the base.
"""

import argparse
import json
from pathlib import Path

import bpe
import corpus
import task
from stream import Stream

VOCAB_SIZE = 1536


def write_lines(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))


def main():
    parser = argparse.ArgumentParser(description="Writes the quickstart's data and tokenizer.")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="the folder with base/ and task/ (default: quickstart)")
    parser.add_argument("--corpus", type=Path, help="also write the pre-training corpus to this file")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other people, messages and texts (default: 1)")
    parser.add_argument("--train-rows", type=int, default=4000)
    parser.add_argument("--held-out-rows", type=int, default=200)
    parser.add_argument("--characters", type=int, default=20_000_000, help="how long the corpus is (default: 20 million)")
    options = parser.parse_args()

    people = task.People(Stream(options.seed, "people"))
    taken = set()
    held_out = task.rows(Stream(options.seed, "held-out"), people.held_out, options.held_out_rows, taken)
    train = task.rows(Stream(options.seed, "train"), people.train, options.train_rows, taken)
    write_lines(options.out / "task" / "held_out.jsonl", held_out)
    write_lines(options.out / "task" / "train.jsonl", train)
    write_lines(options.out / "task" / "train_shuffled.jsonl", task.shuffled(Stream(options.seed, "shuffled"), train))

    # The tokenizer learns from the first documents of the corpus; the words are soon all there.
    sample = corpus.documents(Stream(options.seed, "corpus"), people, 2_000_000)
    merges = bpe.train(sample, VOCAB_SIZE)
    base = options.out / "base"
    write_json(base / "tokenizer.json", bpe.tokenizer_json(merges))
    write_json(base / "tokenizer_config.json", bpe.tokenizer_config())
    write_json(base / "special_tokens_map.json", bpe.special_tokens_map())

    if options.corpus:
        texts = corpus.documents(Stream(options.seed, "corpus"), people, options.characters)
        write_lines(options.corpus, ({"text": text} for text in texts))


if __name__ == "__main__":
    main()
