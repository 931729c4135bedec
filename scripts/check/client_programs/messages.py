"""anthropic-python and litellm's Anthropic side as clients of a running server: a line for every check.
usage: messages.py http://HOST:PORT"""

import json
import sys
import traceback

import anthropic
import litellm
from pydantic import BaseModel

address = sys.argv[1]
client = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, _strict_response_validation=True)
# The newest versions of the package have no parameter for it.
greedy = {"temperature": 0}
short = {"model": "m", "max_tokens": 40, "extra_body": greedy}
hello = [{"role": "user", "content": "Say hello."}]
weather = [{"role": "user", "content": "What is the weather in Paris?"}]
properties = {"city": {"enum": ["Paris", "London"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}
schema = {"type": "object", "properties": properties, "required": ["city", "days"], "additionalProperties": False}
tool = {"name": "forecast", "description": "The weather.", "input_schema": schema}
named = {"type": "tool", "name": "forecast"}
failed = False
litellm.suppress_debug_info = True


class Answer(BaseModel):
    good: bool
    days: int


def check(of, name, run):
    global failed
    try:
        run()
        print(f"{of}\t{name}\tok", flush=True)
    except Exception as error:
        failed = True
        print(f"{of}\t{name}\tFAILED {type(error).__name__}: {str(error)[:200]}", flush=True)
        traceback.print_exc()


def same(a, b):
    assert a == b, f"{a!r} != {b!r}"


def text():
    answer = client.messages.create(messages=hello, system="Be brief.", **short)
    same((answer.role, answer.content[0].type, answer.stop_sequence), ("assistant", "text", None))
    with client.messages.stream(messages=hello, system="Be brief.", **short) as stream:
        told = "".join(stream.text_stream)
        final = stream.get_final_message()
    same(told, answer.content[0].text)
    same((final.content[0].text, final.stop_reason, final.usage), (told, answer.stop_reason, answer.usage))
    kinds = [event.type for event in client.messages.create(messages=hello, system="Be brief.", stream=True, **short)]
    same((kinds[0], kinds[-2:]), ("message_start", ["message_delta", "message_stop"]))


def counting():
    for more in ({}, {"system": "Be brief."}, {"tools": [tool]}):
        counted = client.messages.count_tokens(model="m", messages=hello, **more).input_tokens
        same(counted, client.messages.create(messages=hello, **short, **more).usage.input_tokens)


def tools():
    more = {**short, "max_tokens": 200, "tools": [tool], "tool_choice": named}
    answer = client.messages.create(messages=weather, **more)
    same(answer.stop_reason, "tool_use")
    call = answer.content[0]
    assert call.input["city"] in ("Paris", "London") and 1 <= call.input["days"] <= 9, call
    with client.messages.stream(messages=weather, **more) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        same(stream.get_final_message().content[0].input, call.input)
    assert len(pieces) > 3, pieces
    same(json.loads("".join(pieces)), call.input)
    turn = [{"role": "assistant", "content": answer.content}]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}
    turn.append({"role": "user", "content": [result]})
    assert client.messages.create(messages=weather + turn, tools=[tool], **short).stop_reason


def cut_call():
    more = {**short, "tools": [tool], "tool_choice": named, "messages": weather}
    for length in (4, 20, 28):
        answer = client.messages.create(**{**more, "max_tokens": length})
        same((answer.stop_reason, answer.content[0].name), ("max_tokens", "forecast"))
        with client.messages.stream(**{**more, "max_tokens": length}) as stream:
            same(stream.get_final_message().content[0].name, "forecast")


def stops():
    answer = client.messages.create(messages=hello, **short).content[0].text
    stop = answer[5:8]
    cut = client.messages.create(messages=hello, stop_sequences=[stop], **short)
    same((cut.stop_reason, cut.stop_sequence, cut.content[0].text), ("stop_sequence", stop, answer.split(stop)[0]))


def parse():
    answer = client.messages.parse(messages=weather, output_format=Answer, **short)
    assert isinstance(answer.parsed_output, Answer), answer


def errors():
    for run, kind in [
        (lambda: client.messages.create(messages=hello, **{**short, "model": "other"}), anthropic.NotFoundError),
        (lambda: client.messages.create(messages=hello, **{**short, "extra_body": {"temperature": -1}}), anthropic.BadRequestError),
        (lambda: client.messages.create(messages=[{"role": "user", "content": []}], **short, thinking={
            "type": "enabled", "budget_tokens": 2000}), anthropic.BadRequestError),
        (lambda: client.messages.batches.list(), anthropic.NotFoundError),
    ]:
        try:
            run()
        except kind as error:
            assert error.body["error"]["message"] and error.request_id, error.body
        else:
            raise AssertionError(f"{kind} was expected")


def beta():
    answer = client.beta.messages.create(messages=hello, betas=["context-management-2025-06-27"], context_management={
        "edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, **short)
    same(answer.content[0].text, client.messages.create(messages=hello, **short).content[0].text)


def lite():
    more = {"model": "anthropic/m", "api_base": address, "api_key": "none", "max_tokens": 200, "temperature": 0}
    answer = litellm.completion(messages=hello, **more)
    chunks = list(litellm.completion(messages=hello, stream=True, **more))
    same(litellm.stream_chunk_builder(chunks).choices[0].message.content, answer.choices[0].message.content)
    function = {"name": "forecast", "description": "The weather.", "parameters": schema}
    more |= {"tools": [{"type": "function", "function": function}], "messages": weather}
    more["tool_choice"] = {"type": "function", "function": {"name": "forecast"}}
    for choice in (litellm.completion(**more), litellm.stream_chunk_builder(list(litellm.completion(stream=True, **more)))):
        same(choice.choices[0].finish_reason, "tool_calls")
        assert json.loads(choice.choices[0].message.tool_calls[0].function.arguments)["days"]


for run in (text, counting, tools, cut_call, stops, parse, errors, beta):
    check("anthropic-python", run.__name__, run)
check("litellm", "anthropic", lite)
sys.exit(failed)
