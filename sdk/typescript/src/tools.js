/** Tools of agent loops: each call of a tool runs once, however often the loop is killed and started again. */

import * as errors from "./errors.js";
import { record } from "./operation.js";

/** @import { Client, OperationOptions } from "./client.js" */

/** @typedef {(args: any) => unknown} Tool */
/** @typedef {{ run: string } & Omit<OperationOptions, "input" | "name">} ToolOptions */

/**
 * What a model asks for.
 *
 * @typedef {object} ToolCall
 * @property {string} id
 * @property {string} name
 * @property {any} arguments
 * @property {"plain" | "chat" | "responses" | "anthropic"} dialect How it was asked, and is answered.
 */

/**
 * The tools of one run of an agent. Made by `Client.tools`.
 *
 * A call is known by run id, step and tool call id; its input is the tool's name and arguments. So a restarted loop
 * gets the recorded result of what ran, and a call that was reworded under the same id is refused.
 */
export class Tools {
  #client;
  #tools;
  #run;
  #options;

  /**
   * @param {Client} client
   * @param {Record<string, Tool>} tools
   * @param {ToolOptions} options
   */
  constructor(client, tools, options) {
    const { run, ...more } = options;
    if (!run) throw new TypeError("the run has no id: name it by what survives a restart, like the id of its job");
    this.#client = client;
    this.#tools = new Map(Object.entries(tools));
    this.#run = run;
    this.#options = more;
  }

  /**
   * The key of a tool call: run id, step and tool call id.
   *
   * @param {number | string} step
   * @param {string} callId
   */
  key(step, callId) {
    return [this.#run, String(step), callId].map(encodeURIComponent).join("/");
  }

  /**
   * Calls the tool `name` once, and gives its result.
   *
   * @param {number | string} step
   * @param {string} callId
   * @param {string} name
   * @param {object} args
   * @returns {Promise<any>}
   * @throws ToolCallChanged: the same call was made with another tool or other arguments. BadToolCall: there is no such
   *   tool, or the arguments are no object; nothing was begun. And what a `once` function throws.
   */
  call(step, callId, name, args) {
    return this.#call(step, { id: callId, name, arguments: args, dialect: "plain" });
  }

  /**
   * Does what the model asked for, and gives the message or block to answer it with. After a BadToolCall, give the
   * model its `answer`.
   *
   * @param {number | string} step
   * @param {object} asked A tool call of OpenAI's chat completions or Responses, or a `tool_use` block of Anthropic's.
   * @returns {Promise<any>}
   */
  async answer(step, asked) {
    const call = toolCall(asked);
    return answerTo(call, await this.#call(step, call));
  }

  /** @param {number | string} step @param {ToolCall} call */
  async #call(step, call) {
    if (!call.id) throw new TypeError(`the call of ${call.name} has no id, so it cannot be told from another one`);
    const tool = this.#tools.get(call.name);
    if (!tool) {
      throw badCall(call, `there is no tool "${call.name}"; there are ${[...this.#tools.keys()].sort().join(", ")}`);
    }
    // What cannot be called at all must not leave an operation of which nobody knows.
    if (typeof call.arguments !== "object" || call.arguments === null || Array.isArray(call.arguments)) {
      throw badCall(call, `the arguments of ${call.name} are not an object: ${JSON.stringify(call.arguments)}`);
    }
    let began = false;
    const options = { ...this.#options, name: call.name, input: { tool: call.name, arguments: call.arguments } };
    try {
      return await this.#client.operation(this.key(step, call.id), options, async (operation) => {
        began = true;
        if (!operation.replayed) await record(operation, await tool(call.arguments));
        return operation.result;
      });
    } catch (error) {
      if (began || !(error instanceof errors.KeyReused)) throw error;
      throw new errors.ToolCallChanged(
        `Tool call ${call.id} of step ${step} in run ${this.#run} was made before with another tool or other ` +
          `arguments than ${call.name}(${JSON.stringify(call.arguments)}).`,
        error.means,
        "Keep the model's answers with the run, so that a restarted loop asks for the same; a call that was reworded " +
          "needs a new tool call id or step.",
        { cause: error },
      );
    }
  }
}

/**
 * Reads a tool call of OpenAI's chat completions or Responses, or a `tool_use` block of Anthropic's.
 *
 * @param {any} asked
 * @returns {ToolCall}
 * @throws {errors.BadToolCall} Its arguments are not JSON.
 * @throws {TypeError} It is none of them.
 */
export function toolCall(asked) {
  if (asked?.type === "tool_use") {
    return { id: asked.id, name: asked.name, arguments: asked.input, dialect: "anthropic" };
  }
  if (asked?.type === "function_call") {
    return parsed({ id: asked.call_id, name: asked.name, arguments: asked.arguments, dialect: "responses" });
  }
  if (asked?.function) {
    const { name, arguments: text } = asked.function;
    return parsed({ id: asked.id, name, arguments: text, dialect: "chat" });
  }
  throw new TypeError("this is no tool call of OpenAI's and no tool_use block of Anthropic's");
}

/** @param {ToolCall} call @param {unknown} result */
function answerTo(call, result) {
  const content = typeof result === "string" ? result : JSON.stringify(result);
  switch (call.dialect) {
    case "anthropic":
      return { type: "tool_result", tool_use_id: call.id, content };
    case "responses":
      return { type: "function_call_output", call_id: call.id, output: content };
    default:
      return { role: "tool", tool_call_id: call.id, content };
  }
}

/**
 * The same with its arguments as JSON, of a dialect that writes them as text.
 *
 * @param {ToolCall} call
 * @returns {ToolCall}
 */
function parsed(call) {
  const text = call.arguments;
  if (typeof text !== "string") return call;
  try {
    return { ...call, arguments: text.trim() ? JSON.parse(text) : {} };
  } catch (error) {
    throw badCall(call, `the arguments of ${call.name} are not JSON: ${text}`, error);
  }
}

/**
 * The error that says to you and to the model that it asked for what cannot be done.
 *
 * @param {ToolCall} call
 * @param {string} why
 * @param {unknown} [cause]
 */
function badCall(call, why, cause) {
  const told = answerTo(call, `Nothing was done: ${why}`);
  const answer = call.dialect === "anthropic" ? { ...told, is_error: true } : told;
  const error = new errors.BadToolCall(
    `Tool call ${call.id} cannot be made: ${why}.`,
    "Nothing ran, and no operation was begun.",
    "Hand the answer of this error to the model, which can correct itself.",
    { cause },
  );
  return errors.having(error, { answer });
}
