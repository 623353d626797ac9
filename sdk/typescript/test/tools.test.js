import assert from "node:assert/strict";
import { before, test } from "node:test";

import { BadToolCall, Client, KeyReused, ToolCallChanged, Unknown } from "../src/index.js";
import { QUICK, gateway, key, whole } from "./kit.js";

const file = whole();
let gw;

before(async () => {
  gw = await gateway(file);
});

/** The tools as a restarted process has them, and what they sent. */
function agent() {
  const run = key();
  const sent = [];
  const send_email = async ({ to, text }) => {
    sent.push([to, text]);
    return { sent: sent.length };
  };
  const broken = async () => {
    sent.push("half");
    throw new Error("half way");
  };
  const tools = () => new Client(gw.control, { retry: QUICK }).tools({ send_email, broken }, { run });
  return { run, sent, tools };
}

test("a restarted loop gets what the tool returned", async () => {
  const { sent, tools } = agent();
  const args = { to: "a@example.com", text: "Hello" };
  assert.deepEqual(await tools().call(1, "call_1", "send_email", args), { sent: 1 });
  assert.deepEqual(await tools().call(1, "call_1", "send_email", { text: "Hello", to: "a@example.com" }), { sent: 1 });
  assert.deepEqual(await tools().call(2, "call_1", "send_email", args), { sent: 2 });
  assert.equal(sent.length, 2);
});

test("a call that was reworded is refused, and runs nothing", async () => {
  const { run, sent, tools } = agent();
  await tools().call(1, "call_1", "send_email", { to: "a", text: "Hello" });
  await assert.rejects(tools().call(1, "call_1", "send_email", { to: "a", text: "Hi there" }), (error) => {
    assert.ok(error instanceof ToolCallChanged && error instanceof KeyReused);
    for (const part of ["call_1", "step 1", run, "Hi there"]) assert.ok(error.happened.includes(part));
    return true;
  });
  assert.equal(sent.length, 1);
});

test("a call that cannot be made begins nothing, and tells the model", async () => {
  const { sent, tools } = agent();
  const call = (name, text) => ({ id: "c", type: "function", function: { name, arguments: text } });
  const wrong = [call("send_mail", "{}"), call("send_email", "[1]"), call("send_email", '{"to": '), call("send_email", "7")];
  for (const asked of wrong) {
    await assert.rejects(tools().answer(1, asked), (error) => {
      assert.ok(error instanceof BadToolCall);
      assert.equal(error.answer.tool_call_id, "c");
      assert.match(error.answer.content, /^Nothing was done: /);
      return true;
    });
  }
  const block = { type: "tool_use", id: "c", name: "send_email", input: null };
  await assert.rejects(tools().answer(1, block), (error) => error.answer.is_error === true);
  const key = tools().key(1, "c");
  assert.deepEqual(await gw.operations(key), []);
  // The model has put it right, under the same id.
  await tools().answer(1, call("send_email", '{"to":"a","text":"b"}'));
  assert.deepEqual(sent, [["a", "b"]]);
});

test("calls of OpenAI's and Anthropic's", async () => {
  const { sent, tools } = agent();
  const text = '{"to":"a","text":"b"}';
  const chat = { id: "c1", type: "function", function: { name: "send_email", arguments: text } };
  const responses = { type: "function_call", call_id: "c2", name: "send_email", arguments: text };
  const anthropic = { type: "tool_use", id: "c3", name: "send_email", input: JSON.parse(text) };
  for (let n = 0; n < 2; n += 1) {
    assert.deepEqual(await tools().answer(1, chat), { role: "tool", tool_call_id: "c1", content: '{"sent":1}' });
    assert.deepEqual(await tools().answer(1, responses), {
      type: "function_call_output",
      call_id: "c2",
      output: '{"sent":2}',
    });
    assert.deepEqual(await tools().answer(1, anthropic), {
      type: "tool_result",
      tool_use_id: "c3",
      content: '{"sent":3}',
    });
  }
  assert.equal(sent.length, 3);
});

test("what is no call of a tool runs nothing", async () => {
  const { sent, tools } = agent();
  await assert.rejects(tools().call(1, "c", "send_mail", {}), /there is no tool "send_mail"/);
  await assert.rejects(tools().call(1, "c", "toString", {}), /there is no tool/);
  await assert.rejects(tools().call(1, "", "send_email", {}), /no id/);
  await assert.rejects(tools().answer(1, { type: "text", text: "Hello" }), TypeError);
  const call = { id: "c", function: { name: "send_email", arguments: "{" } };
  await assert.rejects(tools().answer(1, call), /not JSON/);
  assert.throws(() => new Client(gw.control).tools({}, { run: "" }), /no id/);
  assert.deepEqual(sent, []);
});

test("a key tells its parts apart, and is that of the Python package", () => {
  const tools = new Client(gw.control).tools({}, { run: "run/1" });
  assert.equal(tools.key(2, "a b:\u00e9!*'()~"), "run%2F1/2/a%20b%3A%C3%A9!*'()~");
});

test("a tool that fails is not run again", async () => {
  const { sent, tools } = agent();
  await assert.rejects(tools().call(1, "c", "broken", {}), /half way/);
  await assert.rejects(tools().call(1, "c", "broken", {}), Unknown);
  assert.deepEqual(sent, ["half"]);
});
