// What the scripts that drive the console have in common.
"use strict";
const { chromium } = require("playwright-core");

const job = JSON.parse(process.argv[2]);
const say = (text) => console.log(JSON.stringify({ text }));

/** Calls the provider through the gateway; the status. */
const call = async (key, credential, headers = {}) => {
  const answer = await fetch(`${job.base}/v1/chat/completions`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${credential}`,
      "Content-Type": "application/json",
      "Idempotency-Key": key,
      ...headers,
    },
    body: JSON.stringify({ model: "gpt-5-mini", messages: [{ role: "user", content: `Hello ${key}` }] }),
  });
  await answer.text().catch(() => {});
  return answer.status;
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

module.exports = { call, job, run, say };
