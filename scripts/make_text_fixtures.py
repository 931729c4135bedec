"""Makes tests/fixtures/text and tests/fixtures/config: what transformers says about texts, conversations and
configurations.

    pip install transformers jinja2 gguf
    python scripts/make_text_fixtures.py QWEN3_TOKENIZER_DIR SMOLLM2_GGUF

QWEN3_TOKENIZER_DIR holds Qwen3's tokenizer.json and tokenizer_config.json (Apache-2.0); its vocabulary is cut
to the first merges so that the fixture stays small. SMOLLM2_GGUF gives SmolLM2's chat template (Apache-2.0).
"""

import json
import sys
from pathlib import Path

from gguf import GGUFReader
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
MERGES = 700

STRINGS = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock.",
    "  leading and   inner \t\n\n white \r\n space  ",
    "cafe\u0301 na\u00efve \u212b \ufb01ne",
    "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940 \u0420\u0443\u0441\u0441\u043a\u0438\u0439",
    "emoji \U0001f600\U0001f469\u200d\U0001f467 flags \U0001f1eb\U0001f1f7",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think><tool_call>{}</tool_call>",
    "def f(x):\n    return {'a': x}\n",
    "<|endoftext|><|not_special|>",
]


def cut_tokenizer(source, target):
    """Qwen3's pipeline and added tokens on its bytes and first merges."""
    target.mkdir(parents=True, exist_ok=True)
    data = json.loads((source / "tokenizer.json").read_text())
    model = data["model"]
    merges = model["merges"][:MERGES]
    kept = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])[:256]]
    kept += ["".join(pair) for pair in merges]
    kept = list(dict.fromkeys(kept))
    model["vocab"] = {piece: i for i, piece in enumerate(kept)}
    model["merges"] = merges
    config = json.loads((source / "tokenizer_config.json").read_text())
    decoder = {}
    for i, token in enumerate(data["added_tokens"]):
        old, new = token["id"], len(kept) + i
        token["id"] = new
        decoder[str(new)] = config["added_tokens_decoder"][str(old)]
    # The last two are known to the configuration only, as in many published models.
    data["added_tokens"] = data["added_tokens"][:-2]
    config["added_tokens_decoder"] = decoder
    (target / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=True, indent=None))
    (target / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=True, indent=1))


def tokenizer_fixture(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [tokenizer(s).input_ids for s in STRINGS]
    return {
        "strings": STRINGS,
        "ids": ids,
        "decoded": [tokenizer.decode(i) for i in ids],
        "decoded_without_special": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
        "eos": tokenizer.eos_token_id,
        "size": len(tokenizer),
    }


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather \u2014 \"now\" <b>&</b> later",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}

USER = {"role": "user", "content": "Hi there"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, {"role": "assistant", "content": "Hello!\n"}, {"role": "user", "content": "\u00e9 <x> & 'q'"}],
    "thinking": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, {"role": "user", "content": "Sure?"},
                 {"role": "assistant", "content": "Yes.", "reasoning_content": "sure"}],
    "tools": [SYSTEM, {"role": "user", "content": "Weather in Paris?"},
              {"role": "assistant", "content": "", "tool_calls": [
                  {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2, "t": 1e-05}}}]},
              {"role": "tool", "content": "{\"c\": 21}"}, {"role": "tool", "content": "sunny"},
              {"role": "assistant", "content": "21 degrees."}, {"role": "user", "content": "Thanks"}],
}

# What other published templates use: macros, namespaces, slices, filters with arguments, Python's methods
# and spellings, dates, generation marks.
FEATURES = """{{- bos_token }}
{%- macro quoted(text, mark='"') -%}
    {{ mark + text + mark }}
{%- endmacro %}
{%- set ns = namespace(count=0, last='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y") | length %}
{%- endif %}
{{- "date " ~ date_string ~ '\\n' + system_message }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- t.function.parameters.properties.items() | list | length }}
        {%- for key, value in t['function']['parameters']['properties'].items() %}
            {{- key + ': ' + value.type | upper }}{{ ", " if not loop.last }}
        {%- endfor %}
        {{- t.function.parameters.required }} {{ t.function.parameters }} {{ t.function.strict }}
    {%- endfor %}
{%- endif %}
{% for message in messages %}
  {% if loop.index0 % 2 == 9 %}{{ raise_exception("never") }}{% endif %}
  {%- set ns.count = ns.count + 1 %}
  {% if message.role == 'assistant' %}
  {% generation %}
[{{ message['content'].strip().split('\\n')[-1] }}]
  {% endgeneration %}
  {% elif message['content'].startswith('{') %}
    {{ message.content | replace('{', '<') | tojson }}
  {% else %}
    {{ quoted(message.content) }}{{ quoted(message.content.title(), mark="'") }}
  {% endif %}
  {% if 'tool_calls' in message and message.tool_calls %}{{ message.tool_calls[0].function.arguments | tojson(separators=(',', ':'), sort_keys=true) }}{% endif %}
{%- endfor %}
{{ ns.count }} {{ true }} {{ none }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ [1, 'a'] }} {{ messages | map(attribute='role') | join('|') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[-1].role }} {{ messages[::-1][0].role }}
{% if add_generation_prompt %}
<assistant>
{%- endif %}
"""


def render(tokenizer, template, case):
    return tokenizer.apply_chat_template(
        case["messages"], chat_template=template, tools=case["tools"], tokenize=False,
        add_generation_prompt=case["add_generation_prompt"], **case["extra"],
    )


def chat_fixture(directory, templates):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    cases = []
    for name, template in templates.items():
        for conversation, messages in CONVERSATIONS.items():
            variants = [(False, {}), (True, {})]
            if name == "qwen3":
                variants += [(True, {"enable_thinking": False}), (True, {"enable_thinking": True})]
            if name == "features":
                variants = [(False, {"bos_token": "<s>", "date_string": "26 Jul 2024"}), (True, {"bos_token": "<s>"})]
            for add, extra in variants:
                for tools in [None, [WEATHER]] if name != "smollm2" else [None]:
                    case = {"template": name, "conversation": conversation, "messages": messages, "tools": tools,
                            "add_generation_prompt": add, "extra": extra}
                    cases.append({**case, "expected": render(tokenizer, template, case)})
    return {"templates": templates, "cases": cases}


def configs():
    small = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                 vocab_size=128, max_position_embeddings=4096)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 1024, "rope_theta": 500000.0}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e6}
    return {
        "llama": LlamaConfig(**small, tie_word_embeddings=True, eos_token_id=[2, 3], rms_norm_eps=1e-5),
        "llama-llama3": LlamaConfig(**small, rope_parameters=llama3, head_dim=32),
        "llama-linear": LlamaConfig(**small, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        "qwen2-sliding": Qwen2Config(**small, use_sliding_window=True, sliding_window=512, max_window_layers=2),
        "qwen2-yarn": Qwen2Config(**small, rope_parameters=yarn, eos_token_id=7),
        "qwen3": Qwen3Config(**small, head_dim=32, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        "qwen3-yarn": Qwen3Config(**small, rope_parameters={**yarn, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0}),
    }


def main():
    qwen3, smollm2 = Path(sys.argv[1]), Path(sys.argv[2])
    text = FIXTURES / "text"
    directory = text / "qwen3-small"
    cut_tokenizer(qwen3, directory)
    templates = {
        "smollm2": GGUFReader(smollm2).fields["tokenizer.chat_template"].contents(),
        "qwen3": json.loads((qwen3 / "tokenizer_config.json").read_text())["chat_template"],
        "features": FEATURES,
    }
    (text / "tokenizer.json").write_text(json.dumps(tokenizer_fixture(directory), indent=0) + "\n")
    (text / "chat.json").write_text(json.dumps(chat_fixture(directory, templates), indent=0) + "\n")
    (FIXTURES / "config").mkdir(exist_ok=True)
    for name, config in configs().items():
        config.to_json_file(FIXTURES / "config" / f"{name}.json", use_diff=True)


if __name__ == "__main__":
    main()
