#!/usr/bin/env python3
"""Writes what Jinja2 makes of the templates in tests/LoraTrainer.Data.Tests/ChatTemplates/jinja_cases.json into that file.

    pip install jinja2==3.1.6 && python3 scripts/make-jinja-cases.py

The environment is the one that chat templates are rendered in by transformers: the immutable sandbox, trim_blocks, lstrip_blocks, break and continue, tojson as
json.dumps, raise_exception, strftime_now, and a generation block whose place in the output is recorded. To add a case, add {"template": "..."} and run this.
"""

import copy
import datetime
import json
import pathlib

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FILE = pathlib.Path(__file__).parent.parent / "tests/LoraTrainer.Data.Tests/ChatTemplates/jinja_cases.json"
NOW = datetime.datetime(2024, 7, 6, 15, 4, 5)


class Generation(Extension):
    tags = {"generation"}
    printed, spans = [], []

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("record"), [], [], body).set_lineno(line)

    def record(self, caller):
        text = caller()
        start = len("".join(self.printed))
        self.spans.append((start, start + len(text)))
        return text


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = NOW.strftime


def render(template, variables):
    tracker = environment.extensions[Generation.identifier]
    tracker.printed, tracker.spans = [], []
    try:
        for piece in environment.from_string(template).generate(**copy.deepcopy(variables)):
            tracker.printed.append(piece)
    except Exception as problem:
        return {"template": template, "error": f"{type(problem).__name__}: {problem}"}
    return {"template": template, "text": "".join(tracker.printed), "spans": tracker.spans}


content = json.loads(FILE.read_text(encoding="utf8"))
cases = [render(case["template"], content["variables"]) for case in content["cases"]]
lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
FILE.write_text(f'{{"variables": {json.dumps(content["variables"], ensure_ascii=False)},\n"cases": [\n{lines}\n]}}\n', encoding="utf8")
print(f"{len(cases)} cases, {sum('error' in case for case in cases)} of them errors")
