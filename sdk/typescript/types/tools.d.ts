/** Tools of agent loops: each call of a tool runs once, however often the loop is killed and started again. */
import type { Client, OperationOptions } from "./client.js";
export type Tool = (args: any) => unknown;
export type ToolOptions = {
    run: string;
} & Omit<OperationOptions, "input" | "name">;
export type ToolCall = {
    id: string;
    name: string;
    arguments: any;
    /**
     * How it was asked, and is answered.
     */
    dialect: "plain" | "chat" | "responses" | "anthropic";
};
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
export declare class Tools {
    #private;
    /**
     * @param {Client} client
     * @param {Record<string, Tool>} tools
     * @param {ToolOptions} options
     */
    constructor(client: Client, tools: Record<string, Tool>, options: ToolOptions);
    /**
     * The key of a tool call: run id, step and tool call id.
     *
     * @param {number | string} step
     * @param {string} callId
     */
    key(step: number | string, callId: string): string;
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
    call(step: number | string, callId: string, name: string, args: object): Promise<any>;
    /**
     * Does what the model asked for, and gives the message or block to answer it with. After a BadToolCall, give the
     * model its `answer`.
     *
     * @param {number | string} step
     * @param {object} asked A tool call of OpenAI's chat completions or Responses, or a `tool_use` block of Anthropic's.
     * @returns {Promise<any>}
     */
    answer(step: number | string, asked: object): Promise<any>;
}
/**
 * Reads a tool call of OpenAI's chat completions or Responses, or a `tool_use` block of Anthropic's.
 *
 * @param {any} asked
 * @returns {ToolCall}
 * @throws {errors.BadToolCall} Its arguments are not JSON.
 * @throws {TypeError} It is none of them.
 */
export declare function toolCall(asked: any): ToolCall;
