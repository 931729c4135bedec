"""Makes tests/fixtures/text/forms.json: what transformers renders of conversations whose values templates take in different forms.

    pip install transformers==5.24.0 trl==1.16.0 jinja2
    python scripts/make_chat_fixtures.py [MORE.jinja ...] [--out FILE]

The templates are those that TRL carries (Apache-2.0): copies of the models' own. Arguments of a call reach a template as the
text that was sent, or as the object where the template writes that text as a JSON string, or fails with it; content in the
first of these forms that renders every text and call: as it was sent, null, empty.
"""

import argparse
import json
from pathlib import Path

import trl
from transformers.tokenization_utils_base import _normalize_chat_messages
from transformers.utils.chat_template_utils import render_jinja_template

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "text" / "forms.json"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
KEPT = ["cohere", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "glm4moe", "gptoss", "lfm2_v2", "llama3_1",
        "nemotron_3_nano", "phi3", "qwen2_5", "qwen3", "qwen3_instruct_2507"]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather \u2014 \"now\"", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Where"}}, "required": ["city"]}}}]
ARGUMENTS = '{"city": "Z\u00fcrich", "days": 2, "t": 1e-05, "x": [1.0, null, true], "q": "it\'s \\"so\\""}'
USER, THANKS = {"role": "user", "content": "Weather there?"}, {"role": "user", "content": "Thanks \u00e9 <x>"}


def call(arguments, **more):
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", **more, "tool_calls": [{"id": "call12345", "type": "function", "function": function}]}


def turns(first):
    return [USER, first, {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": "21 degrees"},
            {"role": "assistant", "content": "It is 21."}, THANKS]


PARTS = [{"type": "text", "text": "First part"}, {"type": "text", "text": "second part"}]
CONVERSATIONS = {
    "empty content": turns(call(ARGUMENTS, content="")),
    "null content": turns(call(ARGUMENTS, content=None)),
    "no content": turns(call(ARGUMENTS)),
    "object": turns(call(json.loads(ARGUMENTS), content="")),
    "content and call": turns(call(ARGUMENTS, content="Let me look.")),
    "no arguments": turns(call("{}", content="")),
    "null keys": [{**USER, "name": None, "tool_calls": None}, {"role": "assistant", "content": "Yes.", "tool_calls": None}, THANKS],
    "reasoning": [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}],
    "other reasoning": [USER, {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}],
    "parts": [{"role": "user", "content": PARTS}],
    "one part": [{"role": "user", "content": PARTS[:1]}, {"role": "assistant", "content": PARTS[1:]}, THANKS],
    "system": [{"role": "system", "content": "Be brief."}, USER],
}


def render(source, messages, **options):
    try:
        messages = _normalize_chat_messages(messages)
        return render_jinja_template([messages], chat_template=source, **TOKENS, **options)[0][0]
    except Exception:  # noqa: BLE001: templates fail in every way
        return None


def with_arguments(messages, change):
    messages = json.loads(json.dumps(messages))
    for one in messages:
        for made in one.get("tool_calls") or []:
            made["function"]["arguments"] = change(made["function"]["arguments"])
    return messages


def is_whole(text, messages):
    if text is None:
        return False
    for one in messages:
        content = one.get("content") or ""
        said = [content] if isinstance(content, str) else [part["text"] for part in content]
        called = [made["function"]["name"] for made in one.get("tool_calls") or []]
        for shown in said + called:
            if shown.strip() not in text and json.dumps(shown, ensure_ascii=False).strip('"') not in text:
                return False
    return not is_mistaken(text)


def is_mistaken(text):
    """A list where one text was meant, or arguments as a JSON string or within braces that a template writes itself."""
    quoted = [json.dumps(sent, ensure_ascii=False) for sent in (ARGUMENTS, "{}")]
    return "[{'type'" in text or any(sent in text for sent in quoted) or ":get_weather{{" in text


def expected(source, messages, **options):
    """Of the forms that transformers can be given, the first whose text shows everything."""
    first = None
    as_text = lambda given: given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)  # noqa: E731
    as_object = lambda given: json.loads(given) if isinstance(given, str) else given  # noqa: E731
    joined = [{**m, "content": "\n".join(p["text"] for p in m["content"])} if isinstance(m.get("content"), list) else m for m in messages]
    parted = [{**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m for m in messages]
    for given in [messages] + ([joined] if joined != messages else []) + [parted]:
        for blank in ({}, {"content": None}, {"content": ""}):
            filled = [{**m, **blank} if m.get("tool_calls") and not m.get("content") else m for m in given]
            for change in (lambda sent: sent, as_object, as_text):
                text = None
                try:
                    changed = with_arguments(filled, change)
                    if blank == {"content": None}:
                        # transformers leaves null out; templates that ask for none were written before it did.
                        text = render_jinja_template([changed], chat_template=source, **TOKENS, **options)[0][0]
                    else:
                        text = render(source, changed, **options)
                except Exception:  # noqa: BLE001
                    pass
                if is_whole(text, messages):
                    return text
                if first is None and text is not None and not is_mistaken(text):
                    first = text
    return first


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("more", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=FIXTURE)
    parser.add_argument("--all", action="store_true", help="all of TRL's templates")
    arguments = parser.parse_args()
    paths = sorted(TEMPLATES.glob("*.jinja")) if arguments.all else [TEMPLATES / f"{name}.jinja" for name in KEPT]
    templates, cases = {}, []
    for path in [path for path in paths if path.is_file()] + arguments.more:
        name, source = str(path.relative_to(TEMPLATES) if path.is_relative_to(TEMPLATES) else path).removesuffix(".jinja"), path.read_text()
        if "strftime_now" in source:
            source = source.replace('strftime_now("%Y-%m-%d")', '"2026-12-01"').replace("strftime_now('%Y-%m-%d')", "'2026-12-01'")
        templates[name] = source
        for label, messages in CONVERSATIONS.items():
            tools = TOOLS if any(m.get("tool_calls") for m in messages) else None
            want = expected(source, messages, tools=tools, add_generation_prompt=True)
            cases.append({"template": name, "conversation": label, "ending": "answer", "expected": want})
        for label, text in (("goes on", "It is "), ("goes on in parts", PARTS), ("goes on after white space", "It is \n ")):
            messages = [USER, {"role": "assistant", "content": text}]
            want = render(source, messages, continue_final_message=True)
            # transformers prints the list that a template takes for a text, and asks nothing of what comes before.
            if want is None or is_mistaken(want) or USER["content"] not in want:
                continue
            cases.append({"template": name, "conversation": label, "ending": "continue", "messages": messages, "expected": want})
    fixture = {"templates": templates, "tokens": TOKENS, "tools": TOOLS, "conversations": CONVERSATIONS, "cases": cases}
    arguments.out.write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n")


main()
