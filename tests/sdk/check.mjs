// The JavaScript half of check.py: asks for what PLAYS lists and prints, a line of JSON each, how that ended for the caller.
import { createRequire } from "node:module";

const require = createRequire(process.env.MODULES + "/");
const OpenAI = require("openai").default;
const Anthropic = require("@anthropic-ai/sdk").default;
const options = { apiKey: "none", maxRetries: 0, timeout: 20_000 };
const chat = new OpenAI({ baseURL: process.env.BASE + "/v1", ...options });
const claude = new Anthropic({ baseURL: process.env.BASE, ...options });
const user = [{ role: "user", content: "hello" }];

function ask(api, stream, headers) {
  const request = { model: "tiny", stream };
  switch (api) {
    case "chat":
      return chat.chat.completions.create({ ...request, messages: user }, { headers });
    case "completion":
      return chat.completions.create({ ...request, prompt: "hello" }, { headers });
    case "responses":
      return chat.responses.create({ ...request, input: "hello" }, { headers });
    default:
      return claude.messages.create({ ...request, max_tokens: 8, messages: user }, { headers });
  }
}

// One call, with the retries that a client makes by default.
async function call(api, what) {
  const options = { apiKey: "none", timeout: 20_000 };
  const chat = new OpenAI({ baseURL: process.env.BASE + "/v1", ...options });
  const claude = new Anthropic({ baseURL: process.env.BASE, ...options });
  if (what === "model-with-slash") return (await (api === "messages" ? claude : chat).models.retrieve("org/tiny")).id;
  if (what === "wrong-method") return api === "messages" ? claude.post("/v1/models", { body: {} }) : chat.post("/models", { body: {} });
  const request = { model: what === "unknown-model" ? "nope" : "org/tiny", messages: user, stream: what === "deadly-stream" };
  const headers = what.startsWith("deadly") ? { "x-play": "kill" } : {};
  if (api === "messages") return claude.messages.create({ ...request, max_tokens: 8 }, { headers });
  return chat.chat.completions.create(request, { headers });
}

if (process.env.CALL) {
  const [api, what] = JSON.parse(process.env.CALL);
  const result = {};
  try {
    result.came = String(await call(api, what));
  } catch (error) {
    result.came = error.constructor.name;
    result.said = String(error.message).slice(0, 60);
  }
  console.log(JSON.stringify(result));
}

for (const [api, play, stream] of JSON.parse(process.env.PLAYS ?? "[]")) {
  const result = { sdk: api === "messages" ? "anthropic" : "openai", language: "node", api, play };
  try {
    const answer = await ask(api, stream, { "x-play": play });
    result.ended = 1;
    if (stream) {
      result.ended = 0;
      for await (const _ of answer) result.ended += 1;
    }
  } catch (error) {
    result.raised = `${error.constructor.name}: ${String(error.message).slice(0, 60)}`;
  }
  console.log(JSON.stringify(result));
}
