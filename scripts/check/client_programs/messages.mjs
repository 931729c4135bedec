// @anthropic-ai/sdk and the Vercel AI SDK as clients of a running server: a line for every check.
// usage: node messages.mjs http://HOST:PORT
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const address = process.argv[2];
const client = new Anthropic({ baseURL: address, apiKey: "none", maxRetries: 0 });
const short = { model: "m", max_tokens: 40, temperature: 0 };
const messages = [{ role: "user", content: "Say hello." }];
const schema = {
  type: "object",
  properties: { days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["days"],
  additionalProperties: false,
};
const tools = [{ name: "forecast", description: "The weather.", input_schema: schema }];
let failed = false;

async function check(of, name, run) {
  try {
    await run();
    console.log(`${of}\t${name}\tok`);
  } catch (error) {
    failed = true;
    console.log(`${of}\t${name}\tFAILED ${error.name}: ${String(error.message).slice(0, 200).replaceAll("\n", " ")}`);
    console.error(error);
  }
}

await check("anthropic-sdk", "text", async () => {
  const whole = await client.messages.create({ ...short, messages });
  let text = "";
  const stream = client.messages.stream({ ...short, messages }).on("text", (delta) => (text += delta));
  const final = await stream.finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.deepEqual([final.content[0].text, final.stop_reason], [text, whole.stop_reason]);
  const counted = await client.messages.countTokens({ model: "m", messages });
  assert.equal(counted.input_tokens, final.usage.input_tokens);
});

await check("anthropic-sdk", "tools", async () => {
  const body = { ...short, max_tokens: 200, messages, tools, tool_choice: { type: "tool", name: "forecast" } };
  const whole = await client.messages.create(body);
  assert.ok(Number.isInteger(whole.content[0].input.days));
  let pieces = 0;
  const stream = client.messages.stream(body).on("inputJson", () => (pieces += 1));
  const final = await stream.finalMessage();
  assert.deepEqual(final.content[0].input, whole.content[0].input);
  assert.equal(final.stop_reason, "tool_use");
  assert.ok(pieces > 3);
});

await check("anthropic-sdk", "errors", async () => {
  await assert.rejects(client.messages.create({ ...short, messages, model: "other" }), { status: 404, type: "not_found_error" });
  await assert.rejects(client.messages.create({ ...short, messages, temperature: -1 }), { status: 400 });
});

const models = {
  compatible: createOpenAICompatible({ name: "arle", baseURL: `${address}/v1`, includeUsage: true }).chatModel("m"),
  responses: createOpenAI({ baseURL: `${address}/v1`, apiKey: "none" }).responses("m"),
  chat: createOpenAI({ baseURL: `${address}/v1`, apiKey: "none" }).chat("m"),
  anthropic: createAnthropic({ baseURL: `${address}/v1`, apiKey: "none" })("m"),
};
for (const [name, model] of Object.entries(models)) {
  await check("ai-sdk", name, async () => {
    const asked = { model, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
    const whole = await generateText({ ...asked, prompt: "Say hello." });
    let text = "";
    for await (const delta of streamText({ ...asked, prompt: "Say hello." }).textStream) text += delta;
    assert.equal(text, whole.text);
    const forecast = tool({ description: "The weather.", inputSchema: jsonSchema(schema) });
    const called = streamText({ ...asked, prompt: "Weather?", tools: { forecast }, toolChoice: "required" });
    const [call] = await called.toolCalls;
    assert.ok(call.toolName === "forecast" && Number.isInteger(call.input.days));
    assert.ok((await called.usage).outputTokens > 0);
  });
}

process.exit(failed ? 1 : 0);
