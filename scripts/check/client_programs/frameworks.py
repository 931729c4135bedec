"""Frameworks for agents as clients of a running server: a line for every check.
usage: frameworks.py http://HOST:PORT FRAMEWORK..."""

import asyncio
import sys
import traceback

from pydantic import BaseModel

address = sys.argv[1]
base = f"{address}/v1"
failed = False


class Forecast(BaseModel):
    warm: bool
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


def openai_agents(api):
    from agents import (Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool,
                        set_tracing_disabled)
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    model = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}[api]
    asked = []

    @function_tool
    def forecast(days: int) -> str:
        """The weather of so many days."""
        asked.append(days)
        return "sunny"

    async def run():
        own = AsyncOpenAI(base_url=base, api_key="none", max_retries=0)
        settings = ModelSettings(temperature=0, max_tokens=200, tool_choice="required", parallel_tool_calls=False)
        agent = Agent(name="a", instructions="Be brief.", model=model(model="m", openai_client=own), tools=[forecast],
                      model_settings=settings)
        whole = await Runner.run(agent, "Weather?")
        streamed = Runner.run_streamed(agent, "Weather?")
        kinds = {event.type async for event in streamed.stream_events()}
        assert "raw_response_event" in kinds and len(asked) == 2 and whole.final_output is not None, (kinds, asked)
        formed = Agent(name="b", instructions="Be brief.", model=model(model="m", openai_client=own), output_type=Forecast,
                       model_settings=ModelSettings(temperature=0, max_tokens=200))
        assert isinstance((await Runner.run(formed, "Weather?")).final_output, Forecast)

    asyncio.run(run())


def pydantic_ai(api):
    from pydantic_ai import Agent

    if api == "anthropic":
        from pydantic_ai.models.anthropic import AnthropicModel as Model
        from pydantic_ai.providers.anthropic import AnthropicProvider as Provider
        provider = Provider(base_url=address, api_key="none")
    else:
        from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
        from pydantic_ai.providers.openai import OpenAIProvider as Provider
        Model = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        provider = Provider(base_url=base, api_key="none")
    settings = {"temperature": 0, "max_tokens": 300}
    agent = Agent(Model("m", provider=provider), output_type=Forecast, model_settings=settings)

    async def run():
        # A form by a tool that is demanded.
        assert isinstance((await agent.run("Weather?")).output, Forecast)
        text = Agent(Model("m", provider=provider), model_settings=settings)
        async with text.run_stream("Say hello.") as answer:
            assert [piece async for piece in answer.stream_text(delta=True)]

    asyncio.run(run())


def inspect_ai(model, **more):
    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
    from inspect_ai.tool import ToolInfo, ToolParam, ToolParams

    days = ToolParam(type="integer", description="Days.")
    parameters = ToolParams(properties={"days": days}, required=["days"])
    tool = ToolInfo(name="forecast", description="The weather.", parameters=parameters)

    async def run():
        one = get_model(model, api_key="none", config=GenerateConfig(temperature=0, max_tokens=200), **more)
        answer = await one.generate([ChatMessageUser(content="Say hello.")])
        assert answer.completion and answer.usage.input_tokens > 0, answer
        called = await one.generate([ChatMessageUser(content="Weather?")], tools=[tool], tool_choice="any")
        call = called.choices[0].message.tool_calls[0]
        assert call.function == "forecast" and isinstance(call.arguments["days"], int) and not call.parse_error, call

    asyncio.run(run())


def instructor(api):
    import instructor as library
    from anthropic import Anthropic
    from openai import OpenAI

    own = {
        "chat": lambda: library.from_openai(OpenAI(base_url=base, api_key="none"), mode=library.Mode.TOOLS),
        "json": lambda: library.from_openai(OpenAI(base_url=base, api_key="none"), mode=library.Mode.JSON_SCHEMA),
        "anthropic": lambda: library.from_anthropic(Anthropic(base_url=address, api_key="none")),
    }[api]()
    messages = [{"role": "user", "content": "Weather?"}]
    answer = own.chat.completions.create(model="m", max_tokens=200, messages=messages, response_model=Forecast, max_retries=0)
    assert isinstance(answer, Forecast)


def langchain_anthropic():
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import HumanMessage

    model = ChatAnthropic(model="m", base_url=address, api_key="none", max_tokens=200, temperature=0, max_retries=0)
    assert model.invoke("Say hello.").content
    pieces = list(model.stream("Say hello."))
    assert "".join(piece.text for piece in pieces) == model.invoke("Say hello.").text
    assert isinstance(model.with_structured_output(Forecast).invoke("Weather?"), Forecast)
    streamed = None
    for piece in model.bind_tools([Forecast], tool_choice="any").stream("Weather?"):
        streamed = piece if streamed is None else streamed + piece
    assert streamed.tool_calls[0]["name"] == "Forecast", streamed
    assert model.get_num_tokens_from_messages([HumanMessage("Say hello.")]) > 3


checks = {
    "openai-agents": {api: lambda api=api: openai_agents(api) for api in ("chat", "responses")},
    "pydantic-ai": {api: lambda api=api: pydantic_ai(api) for api in ("chat", "responses", "anthropic")},
    "inspect-ai": {
        "chat": lambda: inspect_ai("openai-api/arle/m", base_url=base),
        "responses": lambda: inspect_ai("openai-api/arle/m", base_url=base, responses_api=True),
        "anthropic": lambda: inspect_ai("anthropic/m", base_url=address),
    },
    "instructor": {api: lambda api=api: instructor(api) for api in ("chat", "json", "anthropic")},
    "langchain-anthropic": {"chat": langchain_anthropic},
}
for framework in sys.argv[2:]:
    for name, run in checks[framework].items():
        check(framework, name, run)
sys.exit(failed)
