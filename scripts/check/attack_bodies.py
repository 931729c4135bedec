"""Hostile forms and bodies for scripts/check/attacks: grammars that are deep, large or expensive, and JSON that is damaged."""
import json
import random

NULL = {"type": "null"}


def chain(links, link):
    """A schema whose definitions refer to one another, `links` of them."""
    definitions = {f"d{number}": link({"$ref": f"#/$defs/d{number + 1}"}) for number in range(links)}
    return {"$defs": definitions | {f"d{links}": NULL}, "$ref": "#/$defs/d0"}


def nested(levels, link):
    """A schema in a schema in a schema."""
    schema = NULL
    for _ in range(levels):
        schema = link(schema)
    return schema


LINKS = {
    "anyOf": lambda schema: {"anyOf": [schema, NULL]},
    "oneOf": lambda schema: {"oneOf": [schema, {"type": "string"}]},
    "allOf": lambda schema: {"allOf": [schema]},
    "allOf of two": lambda schema: {"allOf": [schema, {"title": "a"}]},
    "properties": lambda schema: {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False},
    "optional properties": lambda schema: {"type": "object", "properties": {"a": schema, "b": schema}},
    "additionalProperties": lambda schema: {"type": "object", "additionalProperties": schema},
    "patternProperties": lambda schema: {"type": "object", "patternProperties": {"^a": schema}, "additionalProperties": False},
    "items": lambda schema: {"type": "array", "items": schema},
    "prefixItems": lambda schema: {"type": "array", "prefixItems": [schema], "items": False},
    "$ref": lambda schema: schema,
    "$ref with others": lambda schema: schema | {"title": "a", "minLength": 1},
}

SCHEMAS = {f"chain of {name}": chain(1500, link) for name, link in LINKS.items()}
SCHEMAS |= {f"short chain of {name}": chain(300, link) for name, link in LINKS.items()}
SCHEMAS |= {f"nested {name}": nested(60, link) for name, link in LINKS.items() if "$ref" not in name and name != "optional properties"}
SCHEMAS |= {
    "long enum": {"enum": [f"value {number}" for number in range(20_000)]},
    "long string": {"type": "string", "maxLength": 1_000_000},
    "long strings": {"type": "array", "items": {"type": "string", "minLength": 9_000, "maxLength": 99_000}, "maxItems": 90_000},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000, "maxItems": 1_000_000},
    "nested counts": nested(12, lambda schema: {"type": "array", "items": schema, "minItems": 900, "maxItems": 1000}),
    "pattern": {"type": "string", "pattern": "(\\w{1,900}x){1,900}"},
    "many patterns": {"allOf": [{"type": "string", "pattern": f".*{word}.*"} for word in ["a", "b", "c", "d", "e", "f", "g", "h"] * 4]},
    "many properties": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(5_000)}},
    "wide anyOf": {"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "integer"}}} for n in range(3_000)]},
    "itself": {"$ref": "#"},
    "itself in anyOf": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "a ring": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "large numbers": {"type": "number", "minimum": -1e308, "maximum": 1e308, "multipleOf": 1e-300},
    "multiples": {"type": "integer", "multipleOf": 999_999_937, "minimum": 1, "maximum": 10**18},
}

REGEXES = {
    "20,000 \\w": "\\w" * 20_000,
    "words": "(\\w+ )" * 6_000,
    "anything and a": ".*a" * 13_000,
    "alternatives": "|".join(f"{number:06x}.*z" for number in range(4_000)),
    "powers": "(((a{1,1000}){1,1000}){1,1000}){1,1000}",
    "powers of \\w": "(\\w{1,1000}x){1,1000}",
    "classes": "[\\p{L}&&[^a]]" * 2_900,
    "optional": "a?" * 20_000,
    "optional letters": "(?i)" + "[\\p{L}\\p{N}]?" * 2_500,
    "not": "([^a]*[^b]{0,500})" * 1_000,
    "parentheses": "(" * 20_000 + "a" + ")" * 20_000,
    "200 parentheses": "(" * 200 + "a" + ")" * 200,
    "nine of ten": "(a|b)*a(a|b){200}",
    "1 MB": "ab" * 500_000,
}


def rules(count):
    return "start: r0\n" + "".join(f'r{n}: "a" r{n + 1} | "b"\n' for n in range(count)) + f'r{count}: "x"\n'


LARKS = {
    "500 rules": rules(500),
    "10,000 rules": rules(10_000),
    "terminals": "start: T0\n" + "".join(f'T{n}: "a" T{n + 1} | "b"\n' for n in range(2_000)) + 'T2000: "x"\n',
    "parentheses": "start: " + "(" * 10_000 + '"a"' + ")" * 10_000,
    "brackets": "start: " + "[" * 10_000 + '"a"' + "]" * 10_000,
    "200 parentheses": "start: " + "(" * 200 + '"a"' + ")" * 200,
    "itself": "start: start start | start",
    "a schema": "start: %json " + json.dumps(chain(1500, LINKS["anyOf"])),
    "a deep schema": "start: %json " + '{"items":' * 5_000 + "{}" + "}" * 5_000,
    "a grammar in a grammar": "start: a\na: %lark {\n" * 500 + 'start: "x"\n' + "}" * 500,
    "ambiguous": 'start: a*\na: "x"* | "x" a | a "x"\n',
    "counts": 'start: a{1,100000}\na: b{1,100000}\nb: "x"{1,100000}\n',
    "a regex": "start: /" + "(\\w+ )" * 6_000 + "/",
    "and": "start: T\nT: " + " & ".join(f"/.*{chr(97 + n % 26)}.*/" for n in range(60)),
    "not": "start: T\nT: " + "~(" * 500 + '"a"' + ")" * 500,
}
CHOICES = {"20,000 choices": [f"choice {number}" for number in range(20_000)], "a long choice": ["a" * 1_000_000]}


class Fuzz:
    """Bodies that are damaged, one for each number."""

    HOSTILE = [None, True, -1, 0, 2**31, 2**64, -2**63, 1e308, 0.5, "", "a", "\u0000", "\ud83d\ude00" * 50, "a" * 5_000, [], {}, [[]],
               [None], [1, "a"], [[[[1]]]], {"a": {"a": {}}}, list(range(300)), {"": ""}, "{{7*7}}", "{% for a in b %}", "</think>",
               "<tool_call>{", "../../etc/passwd", "file:///etc/passwd", [4_294_967_295], [-1], {"type": "object"}, "NaN"]
    BYTES = [b"", b"\xff", b"\x00", b"[", b"{", b"}", b"]", b",", b'"', b"\\u12", b"1e999", b"nul", b"-", b"\xed\xa0\x80", b"[" * 300,
             b'{"a":' * 300, b"// a\n", b"9" * 500, b"NaN", b"\xef\xbb\xbf"]

    def __init__(self, number, bodies):
        self.random = random.Random(number)
        self.bodies = bodies

    def hostile(self):
        return self.random.choice(self.HOSTILE)

    def spoil(self, value, depth=0):
        """A value with one part of it replaced."""
        if isinstance(value, dict) and value and self.random.random() < 0.85:
            key = self.random.choice(list(value))
            return value | {key: self.spoil(value[key], depth + 1)}
        if isinstance(value, list) and value and self.random.random() < 0.85:
            place = self.random.randrange(len(value))
            return value[:place] + [self.spoil(value[place], depth + 1)] + value[place + 1:]
        return self.hostile()

    def body(self, path):
        """Bytes for this path, from a good body of it or of another one."""
        own = self.bodies.get(path)
        value = own if own is not None and self.random.random() < 0.9 else self.random.choice(list(self.bodies.values()))
        for _ in range(self.random.randint(0, 3)):
            value = self.spoil(value)
        if self.random.random() < 0.3 and isinstance(value, dict):
            value = value | {self.random.choice(["messages", "prompt", "tools", "n", "stop", "a"]): self.hostile()}
        data = json.dumps(value).encode()
        for _ in range(self.random.choice([0, 0, 1, 3])):
            place = self.random.randint(0, len(data))
            data = data[:place] + self.random.choice(self.BYTES) + data[place + self.random.choice([0, 0, 1, 20]):]
        return data
