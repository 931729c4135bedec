// openai-node as a client of a running server: a line for every check. usage: node checks.mjs http://HOST:PORT
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const short = { model: "m", temperature: 0, max_tokens: 40 };
const messages = [{ role: "user", content: "Say hello." }];
const parameters = {
  type: "object",
  properties: { days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["days"],
  additionalProperties: false,
};
const described = { name: "forecast", description: "The weather.", parameters, strict: true };
const tools = [{ type: "function", function: described }];
const tool_choice = { type: "function", function: { name: "forecast" } };
let failed = false;

async function check(name, run) {
  try {
    await run();
    console.log(`openai-node\t${name}\tok`);
  } catch (error) {
    failed = true;
    console.log(`openai-node\t${name}\tFAILED ${error.name}: ${String(error.message).slice(0, 200).replaceAll("\n", " ")}`);
  }
}

await check("chat", async () => {
  const whole = await client.chat.completions.create({ ...short, messages });
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...short, messages, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
});

await check("chat_helper", async () => {
  const stream = client.chat.completions.stream({ ...short, messages, stream_options: { include_usage: true } });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(text, final.choices[0].message.content);
  assert.ok((await stream.totalUsage()).completion_tokens > 0);
});

await check("tools", async () => {
  const body = { ...short, max_tokens: 200, messages, tools, tool_choice };
  const call = (await client.chat.completions.create(body)).choices[0].message.tool_calls[0];
  assert.ok(Number.isInteger(JSON.parse(call.function.arguments).days));
  const streamed = (await client.chat.completions.stream(body).finalChatCompletion()).choices[0];
  assert.equal(streamed.finish_reason, "tool_calls");
  assert.equal(streamed.message.tool_calls[0].function.arguments, call.function.arguments);
});

await check("run_tools", async () => {
  let asked = 0;
  const run = (args) => ((asked = args.days), "sunny");
  const withCode = [{ type: "function", function: { ...described, function: run, parse: JSON.parse } }];
  const runner = client.chat.completions.runTools({ ...short, max_tokens: 200, messages, tools: withCode, tool_choice });
  await runner.done();
  assert.ok(asked >= 1 && asked <= 9);
});

await check("responses", async () => {
  const body = { model: "m", temperature: 0, max_output_tokens: 60, input: "Say hello." };
  const whole = await client.responses.create(body);
  let text = "";
  const stream = client.responses.stream(body);
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output_text, whole.output_text);
});

await check("responses_tools", async () => {
  const flat = [{ type: "function", ...described }];
  const forced = { tools: flat, tool_choice: "required", parallel_tool_calls: false };
  const body = { model: "m", max_output_tokens: 200, input: "Weather?", ...forced };
  const final = await client.responses.stream(body).finalResponse();
  assert.equal(final.output[0].type, "function_call");
  assert.ok(Number.isInteger(JSON.parse(final.output[0].arguments).days));
});

await check("errors", async () => {
  const background = client.responses.create({ model: "m", input: "x", background: true });
  await assert.rejects(background, { status: 400, param: "background" });
  await assert.rejects(client.chat.completions.create({ ...short, messages, model: "other" }), { status: 404 });
});

process.exit(failed ? 1 : 0);
