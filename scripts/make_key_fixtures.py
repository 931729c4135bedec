"""Makes tests/fixtures/keys.json: every key that PEFT and transformers know in the configurations which ARLE reads.

    pip install peft==0.21.2 transformers==5.24.0
    python scripts/make_key_fixtures.py

"peft" has the defaults of LoraConfig; "llama", "qwen2" and "qwen3" those of the models' configurations. Tests hold the
tables of keys against these lists.
"""
import dataclasses
import json
from pathlib import Path

import peft
import transformers

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "keys.json"


def default(field):
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = None
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def model(config):
    values = {field.name: default(field) for field in dataclasses.fields(config)}
    # What a fresh configuration writes besides.
    values.update(json.loads(config().to_json_string(use_diff=False)))
    return {key: value for key, value in sorted(values.items()) if not key.startswith("_")}


def main():
    keys = {
        "versions": {"peft": peft.__version__, "transformers": transformers.__version__},
        "peft": {field.name: default(field) for field in dataclasses.fields(peft.LoraConfig)},
        "llama": model(transformers.LlamaConfig),
        "qwen2": model(transformers.Qwen2Config),
        "qwen3": model(transformers.Qwen3Config),
    }
    OUT.write_text(json.dumps(keys, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
