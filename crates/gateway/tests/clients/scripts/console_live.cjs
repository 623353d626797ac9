// Follows the recording of an operation that runs, in Chromium: its first piece while the rest is not there,
// and the last one without another look. Prints one line for each thing that was seen.
"use strict";
const assert = require("node:assert/strict");
const { ask, job, look, run, say } = require("./console_kit.cjs");

const { control, token } = job;
// The answer takes ten seconds.
const SLOWLY = { "X-Sandbox-Chunks": "40", "X-Sandbox-Interval": "250ms" };
const STREAM = { stream: true, stream_options: { include_usage: true } };

const main = async (browser) => {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  const state = (name) => page.locator(`.state.${name}`);
  const figure = (label) => page.locator(".figure", { hasText: label });

  await page.goto(`${control}/console`);
  await page.fill("#token", token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Live").waitFor();
  const answer = ask("slow-story-7", "sk-acme", SLOWLY, STREAM);
  await page.getByRole("link", { name: "slow-story-7" }).click();
  await state("in_flight").waitFor();
  await figure("Cost").getByText("not known yet").waitFor();
  await figure("Tokens").getByText("gpt-5-mini").waitFor();
  // Lost with a reload.
  await page.evaluate(() => { window.sinceTheFirstLook = true; });
  await page.getByRole("button", { name: "Show the body" }).click();
  const body = page.getByRole("region", { name: "The body" });
  await body.getByText("chat.completion.chunk").waitFor();
  const early = await body.textContent();
  assert.ok(!early.includes("[DONE]"), early);
  assert.equal(await state("in_flight").count(), 1);
  await look(page, "in-flight");
  say("the first piece, while it runs");

  await page.waitForFunction((before) => document.querySelector("pre").textContent.length > before, early.length);
  assert.equal(await state("in_flight").count(), 1);
  say("it grows");

  await body.getByText("[DONE]").waitFor();
  await state("completed").waitFor();
  await figure("Cost").getByText("by the price table").waitFor();
  // Status and headers come beside the body that is looked at.
  await page.locator("#answer .status", { hasText: "200" }).waitFor();
  await page.getByText(/Headers \(\d+\)/).waitFor();
  assert.equal(await page.evaluate(() => window.sinceTheFirstLook), true);
  say("the last piece, and the outcome");

  const { status, text } = await answer;
  assert.equal(status, 200);
  assert.equal(await body.textContent(), text);
  assert.equal(await page.getByRole("button", { name: "Show the body" }).count(), 0);
  say("what the caller got");
};

run(main);
