// Calls with the official OpenAI SDK, as the JSON in the first argument asks. The lines that it
// prints are those of openai_client.py. NODE_PATH says where the SDK is.

const OpenAI = require("openai").OpenAI;

const job = JSON.parse(process.argv[2]);
const stream = job.stream ?? false;
const client = new OpenAI({
  baseURL: job.base + "/v1",
  apiKey: "sk-test",
  timeout: (job.timeout ?? 60) * 1000,
  maxRetries: job.max_retries ?? 2,
});
const headers = { ...(job.headers ?? {}), "Idempotency-Key": job.key };
const prompt = job.prompt ?? "Say it once.";
const chat = job.call === "chat";
const request = chat
  ? { model: "gpt-test", stream, messages: [{ role: "user", content: prompt }] }
  : { model: "gpt-test", stream, input: prompt };

if ("include_usage" in job) request.stream_options = { include_usage: job.include_usage };

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const wholeText = (answer) => (chat ? answer.choices[0].message.content : answer.output_text);
const pieceOf = (event) => {
  if (chat && event.usage && event.choices.length === 0) return `<usage of ${event.usage.completion_tokens}>`;
  if (chat) return event.choices[0]?.delta?.content ?? "";
  return event.type === "response.output_text.delta" ? event.delta : "";
};

async function call() {
  const resource = chat ? client.chat.completions : client.responses;
  const { data, response } = await resource.create(request, { headers }).withResponse();
  const mark = response.headers.get("onlyonce-status");
  if (!stream) return say({ text: wholeText(data), mark });
  let text = "";
  for await (const event of data) {
    text += pieceOf(event);
    say({ piece: pieceOf(event) });
  }
  say({ text, mark });
}

async function main() {
  if (job.wait) {
    say({ ready: true });
    require("fs").readSync(0, Buffer.alloc(16));
  }
  for (let i = 0; i < (job.times ?? 1); i++) {
    try {
      await call();
    } catch (error) {
      say({ error: error.constructor.name, status: error.status ?? null, message: String(error) });
    }
  }
}

main();
