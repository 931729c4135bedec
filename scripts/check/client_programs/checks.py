"""openai-python and litellm as clients of a running server: a line for every check. usage: checks.py http://HOST:PORT"""

import asyncio
import sys
import traceback
from enum import Enum

import litellm
import openai
from pydantic import BaseModel

address = sys.argv[1] + "/v1"
client = openai.OpenAI(base_url=address, api_key="none", max_retries=0, _strict_response_validation=True)
lite = {"model": "openai/m", "api_base": address, "api_key": "none", "max_tokens": 60, "temperature": 0}
short = {"model": "m", "max_tokens": 40, "temperature": 0}
longer = {**short, "max_tokens": 200}
hello = [{"role": "user", "content": "Say hello."}]
weather = [{"role": "user", "content": "What is the weather in Paris?"}]
failed = False
litellm.suppress_debug_info = True


class Unit(str, Enum):
    C = "celsius"
    F = "fahrenheit"


class GetWeather(BaseModel):
    city: Unit
    days: int


class Answer(BaseModel):
    good: bool
    unit: Unit


tool = openai.pydantic_function_tool(GetWeather)
flat = {"type": "function", **tool["function"]}
named = {"type": "function", "function": {"name": "GetWeather"}}


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


def chat():
    answer = client.chat.completions.create(messages=hello, logprobs=True, top_logprobs=2, **short)
    assert answer.choices[0].message.content and answer.usage.completion_tokens == len(answer.choices[0].logprobs.content)
    chunks = list(client.chat.completions.create(messages=hello, stream=True, stream_options={"include_usage": True}, **short))
    same("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), answer.choices[0].message.content)
    same((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], answer.usage.completion_tokens))


def chat_helper():
    with client.chat.completions.stream(messages=hello, **short) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        same(stream.get_final_completion().choices[0].message.content, text)


def chat_parse():
    answer = client.chat.completions.parse(messages=weather, response_format=Answer, **short)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(messages=weather, response_format=Answer, **short) as stream:
        same(stream.get_final_completion().choices[0].message.parsed, answer.choices[0].message.parsed)


def chat_tools():
    answer = client.chat.completions.parse(messages=weather, tools=[tool], tool_choice=named, **longer)
    call = answer.choices[0].message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, GetWeather) and answer.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(messages=weather, tools=[tool], tool_choice=named, **longer) as stream:
        events = [event.type for event in stream]
        again = stream.get_final_completion().choices[0].message.tool_calls[0]
    same(again.function.parsed_arguments, call.function.parsed_arguments)
    assert "tool_calls.function.arguments.done" in events, events
    turn = [answer.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    assert client.chat.completions.create(messages=weather + turn, tools=[tool], **short).choices[0].finish_reason


def strict_auto():
    for seed in range(3):
        more = {**short, "temperature": 1, "seed": seed}
        for call in client.chat.completions.create(messages=weather, tools=[tool], **more).choices[0].message.tool_calls or []:
            GetWeather.model_validate_json(call.function.arguments)


def response():
    answer = client.responses.create(model="m", input="Say hello.", temperature=0, max_output_tokens=40)
    chatted = client.chat.completions.create(messages=hello, **short)
    same(answer.output_text, chatted.choices[0].message.content)
    logprobs = ["message.output_text.logprobs"]
    cut = client.responses.create(model="m", input="Count.", max_output_tokens=3, include=logprobs, top_logprobs=1)
    same((cut.status, cut.incomplete_details.reason), ("incomplete", "max_output_tokens"))
    same(len(cut.output[0].content[0].logprobs), 3)


def response_stream():
    with client.responses.stream(model="m", input="Say hello.", temperature=0, max_output_tokens=60) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        same(stream.get_final_response().output_text, text)


def response_parse():
    parsed = client.responses.parse(model="m", input="Is it good?", text_format=Answer, max_output_tokens=60).output_parsed
    assert isinstance(parsed, Answer)
    with client.responses.stream(model="m", input="Is it good?", text_format=Answer, max_output_tokens=60) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Answer)


def response_tools():
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    more = {"model": "m", "tools": [tool], "max_output_tokens": 200, "temperature": 0}
    with client.responses.stream(input=asked, tool_choice="required", parallel_tool_calls=False, **more) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
        final = stream.get_final_response()
    call = final.output[0]
    same([event.arguments for event in done], [call.arguments])
    assert isinstance(call.parsed_arguments, GetWeather)
    turn = [{"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}]
    assert client.responses.create(input=asked + final.output + turn, **{**more, "tools": [flat]}).output


def errors():
    respond = client.responses.create
    for run, kind, param in [
        (lambda: respond(model="m", input="x", previous_response_id="r"), openai.BadRequestError, "previous_response_id"),
        (lambda: respond(model="other", input="x"), openai.NotFoundError, "model"),
        (lambda: respond(model="m", input="x", temperature=-1), openai.BadRequestError, "temperature"),
        (lambda: client.responses.retrieve("resp_1"), openai.NotFoundError, None),
    ]:
        try:
            run()
        except kind as error:
            same(error.param, param)
        else:
            raise AssertionError(f"{param} was not refused")


async def at_once():
    several = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0)
    asks = [several.responses.create(model="m", input=f"{n}?", max_output_tokens=8, temperature=0) for n in range(6)]
    assert all(answer.status in ("completed", "incomplete") for answer in await asyncio.gather(*asks))


def lite_chat():
    answer = litellm.completion(messages=hello, **lite)
    chunks = list(litellm.completion(messages=hello, stream=True, stream_options={"include_usage": True}, **lite))
    built = litellm.stream_chunk_builder(chunks, messages=hello)
    same(built.choices[0].message.content, answer.choices[0].message.content)
    same(built.usage.completion_tokens, answer.usage.completion_tokens)


def lite_tools():
    more = {**lite, "max_tokens": 200, "tools": [tool], "tool_choice": named, "messages": weather}
    answer = litellm.completion(**more).choices[0]
    built = litellm.stream_chunk_builder(list(litellm.completion(stream=True, **more))).choices[0]
    for choice in (answer, built):
        same(choice.finish_reason, "tool_calls")
        GetWeather.model_validate_json(choice.message.tool_calls[0].function.arguments)
    same(*[choice.message.tool_calls[0].function.arguments for choice in (answer, built)])


def lite_format():
    Answer.model_validate_json(litellm.completion(messages=hello, response_format=Answer, **lite).choices[0].message.content)


def lite_responses():
    more = {"model": "openai/m", "api_base": address, "api_key": "none", "max_output_tokens": 20, "temperature": 0}
    answer = litellm.responses(input="Say hello.", **more)
    events = list(litellm.responses(input="Say hello.", stream=True, **more))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    same(text, answer.output[0].content[0].text)


def lite_errors():
    for more, kind in [({"temperature": -1}, litellm.BadRequestError), ({"model": "openai/other"}, litellm.NotFoundError)]:
        try:
            litellm.completion(messages=hello, **{**lite, **more})
        except kind:
            continue
        raise AssertionError(f"{more} was not refused")


for run in (chat, chat_helper, chat_parse, chat_tools, strict_auto, errors):
    check("openai-python", run.__name__, run)
for run in (response, response_stream, response_parse, response_tools):
    check("openai-python", run.__name__, run)
check("openai-python", "at_once", lambda: asyncio.run(at_once()))
for run in (lite_chat, lite_tools, lite_format, lite_responses, lite_errors):
    check("litellm", run.__name__.removeprefix("lite_"), run)
sys.exit(failed)
