// What the scripts that drive the console have in common.
"use strict";
const assert = require("node:assert/strict");
const { AxeBuilder } = require("@axe-core/playwright");
const { chromium } = require("playwright-core");

const job = JSON.parse(process.argv[2]);
const say = (text) => console.log(JSON.stringify({ text }));

/** Calls the provider through the gateway, with `more` in the body; the status, and what came of the answer. */
const ask = async (key, credential, headers = {}, more = {}) => {
  const answer = await fetch(`${job.base}/v1/chat/completions`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${credential}`,
      "Content-Type": "application/json",
      "Idempotency-Key": key,
      ...headers,
    },
    body: JSON.stringify({ model: "gpt-5-mini", messages: [{ role: "user", content: `Hello ${key}` }], ...more }),
  });
  return { status: answer.status, text: await answer.text().catch(() => undefined) };
};

/** The same; the status. */
const call = async (...asked) => (await ask(...asked)).status;

/** Nothing is in the way of who cannot see the page; a picture of it goes to where pictures are wanted. */
const look = async (page, name) => {
  const { violations } = await new AxeBuilder({ page }).analyze();
  assert.deepEqual(violations.map((one) => `${one.id}: ${one.nodes[0].html}`), [], name);
  if (job.pictures) await page.screenshot({ path: `${job.pictures}/console-${name}.png` });
};

/** Runs `main` with a browser, which ends with it. */
const run = async (main) => {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
  try {
    await main(browser);
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  } finally {
    await browser.close();
  }
};

module.exports = { ask, call, job, look, run, say };
