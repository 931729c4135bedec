"""Texts that show how a tokenizer cuts: for make_gguf_fixtures.py and make_cut_fixtures.py."""

STRINGS = [
    "",
    " ",
    "Hello world",
    "  two  spaces\tand\ttabs \n\n new lines\r\n  end  ",
    "It's 1234567 o'clock, isn't it? I'LL SAY 'twas.",
    "x=10;y=[1,22,333,4444]; a+b<c^d~e|f $5.99",
    "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n\tprint(i)",
    "naïve café façade €100,000 — “quoted” … Übergröße",
    "日本語のテキスト と 한국어 और हिन्दी",
    "emoji 😀👩‍👩‍👧🇫🇷 and \u00a0 nbsp \u3000 wide \u200b zero",
    "<|im_start|>user\nhi<|im_end|>\n<tool> x</tool><|im_start|>",
    "a<|im_end|> b <|im_end|>",
    "trailing space ",
]
