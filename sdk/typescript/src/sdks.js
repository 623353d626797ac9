/**
 * The official SDKs: a client of theirs that sends the key of an action with each attempt.
 *
 * None of them is imported here. OpenAI's and Anthropic's clients take a `fetch`, Stripe's an HTTP client of its own;
 * each gets one that puts the key in before it hands the request on.
 */

import { OnlyonceError } from "./errors.js";
import { HEADER, isProblem } from "./actions.js";

/** @import { ActionCall } from "./actions.js" */

/**
 * `client` for the one request of `call`.
 *
 * @template {object} C
 * @param {C} client
 * @param {ActionCall} call
 * @returns {C}
 * @throws {TypeError} It is no client that is known.
 */
export function withAction(client, call) {
  /** @type {any} */
  const of = client;
  if (typeof of.withOptions === "function" && typeof of.fetch === "function") {
    const keyed = call.fetch(of.fetch);
    /** @type {typeof globalThis.fetch} */
    const fetch = async (input, init) => {
      try {
        return await keyed(input, init);
      } catch (error) {
        return refusal(error, (document, headers) => Response.json(document, { status: document.status, headers }));
      }
    };
    return of.withOptions({ fetch });
  }
  if (typeof of.withStripeContext === "function" && typeof of.getApiField === "function") return stripe(of, call);
  throw new TypeError(
    `${of.constructor?.name ?? "this"} is no client of OpenAI's, Anthropic's or Stripe's: use ActionKeys.fetch or ` +
      "ActionKeys.call with others",
  );
}

/**
 * What a gateway would answer in place of an attempt that was not sent. The SDKs wrap and retry whatever is thrown
 * under them, but not this.
 *
 * @template A
 * @param {unknown} error
 * @param {(document: any, headers: Record<string, string>) => A} answer
 * @returns {A}
 */
function refusal(error, answer) {
  if (!(error instanceof OnlyonceError)) throw error;
  const document = {
    type: `/problems/${error.name.replace(/(?<=[a-z])(?=[A-Z])/g, "-").toLowerCase()}`,
    title: error.happened,
    status: error.name === "ActionReused" ? 422 : 409,
    detail: error.message,
    // OpenAI's and Stripe's clients look for the message here.
    error: { type: "idempotency_error", message: error.message },
  };
  const headers = {
    "content-type": "application/problem+json",
    "x-should-retry": "false",
    "stripe-should-retry": "false",
  };
  return answer(document, headers);
}

/** @param {any} client @param {ActionCall} call */
function stripe(client, call) {
  const context = client.getApiField("stripeContext");
  const copy = client.withStripeContext(context ?? undefined);
  copy._setApiField("stripeAccount", client.getApiField("stripeAccount"));
  copy._setApiField("httpClient", new StripeHttp(client.getApiField("httpClient"), call));
  return copy;
}

/** Stripe's HTTP client, with the key of the action in place of Stripe's. */
class StripeHttp {
  #inner;
  #call;

  /** @param {any} inner @param {ActionCall} call */
  constructor(inner, call) {
    this.#inner = inner;
    this.#call = call;
  }

  getClientName() {
    return this.#inner.getClientName();
  }

  /**
   * @param {string} host
   * @param {string | number} port
   * @param {string} path
   * @param {string} method
   * @param {Record<string, any>} headers
   * @param {string | Uint8Array} body
   * @param {string} protocol
   * @param {number} timeout
   */
  async makeRequest(host, port, path, method, headers, body, protocol, timeout) {
    const url = new URL(`${protocol}://${host}${path}`);
    url.port = String(port);
    let key;
    try {
      key = await this.#call.key(method, url.href, body ?? "");
    } catch (error) {
      return refusal(error, (document, told) => new StripeRefusal(document, told));
    }
    const others = Object.entries(headers).filter(([name]) => name.toLowerCase() !== HEADER.toLowerCase());
    const keyed = { ...Object.fromEntries(others), [HEADER]: key };
    const answer = await this.#inner.makeRequest(host, port, path, method, keyed, body, protocol, timeout);
    return this.#noted(answer);
  }

  /** @param {any} answer */
  async #noted(answer) {
    const headers = answer.getHeaders();
    /** @param {string} name */
    const header = (name) => headers[name];
    let problem;
    if (isProblem(header)) {
      const document = await answer.toJSON();
      problem = JSON.stringify(document);
      // It can be read once alone.
      answer.toJSON = async () => document;
    }
    await this.#call.answered(answer.getStatusCode(), header, problem);
    return answer;
  }
}

/** An answer that was made here. */
class StripeRefusal {
  #document;
  #headers;

  /** @param {any} document @param {Record<string, string>} headers */
  constructor(document, headers) {
    this.#document = document;
    this.#headers = headers;
  }

  getStatusCode() {
    return this.#document.status;
  }

  getHeaders() {
    return this.#headers;
  }

  getRawResponse() {
    return this;
  }

  async toJSON() {
    return this.#document;
  }
}
