#!/usr/bin/env python3
"""Puts the table of docs/methods.md together: scripts/methods-table.py RESULTS SPEED, both rows of scripts/methods.sh (SPEED with MAX_STEPS, on an idle machine)."""
import json
import pathlib
import statistics
import sys

NAMES = {
    "full": "all parameters", "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "pissa": "PiSSA", "qlora-nf4": "QLoRA NF4", "qlora-fp4": "QLoRA FP4", "lora-int8": "LoRA, base in 8 bits",
    "qdora-nf4": "DoRA on NF4",
}

results, speed = ([json.loads(line) for line in open(path, encoding="utf-8")] for path in sys.argv[1:3])
lines = ["| method | trained | held-out exact match, three seeds | mean | held-out loss | tokens/s | peak memory |", "|---|---|---|---|---|---|---|"]
for method, name in NAMES.items():
    runs = sorted((row for row in results if row["method"] == method), key=lambda row: row["seed"])
    fast = next((row for row in speed if row["method"] == method), None)
    if len(runs) == 0 or fast is None:
        continue
    matches = [100 * row["held_out_exact_match"] for row in runs]
    lines.append(
        f"| {name} | {fast['trainable_parameters']:,} | {', '.join(f'{match:.1f} %' for match in matches)} | {statistics.mean(matches):.1f} % "
        f"| {statistics.mean(row['held_out_loss'] for row in runs):.3f} | {fast['tokens_per_second']:,.0f} | {fast['peak_bytes'] / 1e6:.0f} MB |")
page = pathlib.Path(__file__).parent.parent / "docs" / "methods.md"
text = page.read_text(encoding="utf-8")
begin, end = "<!-- table begins -->\n", "<!-- table ends -->"
page.write_text(text[: text.index(begin) + len(begin)] + "\n".join(lines) + "\n" + text[text.index(end):], encoding="utf-8")
