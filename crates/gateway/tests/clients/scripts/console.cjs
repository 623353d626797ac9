// Drives the console in Chromium, from an empty store to a settled unknown. The job says where the
// gateway and its control listener are, the token, and where pictures go, if they are wanted. Prints one
// line for each thing that was seen.
"use strict";
const assert = require("node:assert/strict");
const { call, job, look, run, say } = require("./console_kit.cjs");

const { control, token, viewer } = job;

const main = async (browser) => {
  const wrong = [];
  const open = async (options = {}) => {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
    context.setDefaultTimeout(10_000);
    const page = await context.newPage();
    // A page that asks for a token is a 401, and Chromium says so on its console.
    page.on("console", (line) => {
      if (line.type() === "error" && !line.text().includes("401")) wrong.push(line.text());
    });
    page.on("pageerror", (error) => wrong.push(String(error)));
    page.on("request", (request) => {
      if (new URL(request.url()).origin !== control) wrong.push(`asked ${request.url()}`);
    });
    return page;
  };
  const signIn = async (page, path, secret) => {
    await page.goto(control + path);
    await page.fill("#token", secret);
    await page.getByRole("button", { name: "Sign in" }).click();
  };

  let page = await open();
  await signIn(page, "/console", "not-a-token-of-this-gateway");
  await page.getByText("That is no token of this gateway").waitFor();
  await look(page, "login");
  await page.fill("#token", token);
  await page.keyboard.press("Enter");
  await page.getByText("Nothing has run yet").waitFor();
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
  assert.ok(!cookie.value.includes(token) && !page.url().includes(token));
  assert.equal(await page.evaluate(() => document.cookie), "");
  say("login");

  await look(page, "empty");
  await page.getByText("Live").waitFor();
  assert.equal(await call("first-1", "sk-acme"), 200);
  await page.getByRole("link", { name: "first-1" }).waitFor();
  say("the first request appears");

  for (const key of ["invoice-2041", "summary-77", "translate-9f2", "classify-31", "plan-trip-12"]) {
    assert.equal(await call(key, "sk-acme"), 200);
  }
  for (const key of ["nightly-report-26", "ticket-9912"]) assert.equal(await call(key, "sk-globex"), 200);
  await call("invoice-2041", "sk-acme", { "X-Stainless-Retry-Count": "1" });
  await call("invoice-2041", "sk-acme", { "X-Stainless-Retry-Count": "2" });
  await call("charge-card-66", "sk-acme", { "X-Sandbox-Fault": "cut-stream" }).catch(() => {});
  assert.equal(await call("import-batch-3", "sk-globex", { "X-Sandbox-Fault": "reset-before-head" }), 502);
  await page.locator("a.figure, div.figure", { hasText: "waiting for somebody to find out" })
    .getByText("2", { exact: true }).waitFor();
  // Two replays, at what the execution cost.
  await page.locator(".money .saved strong", { hasText: /^\$0\.0000[1-9]/ }).waitFor();
  await page.getByText("in 2 replays and 0 joins", { exact: true }).waitFor();
  await look(page, "overview");
  say("figures change by themselves");

  await page.getByRole("link", { name: "30d" }).click();
  assert.equal(await page.locator(".chart .room").count(), 30);
  await page.getByRole("link", { name: "Spend", exact: true }).click();
  await page.getByRole("cell", { name: "globex" }).waitFor();
  await look(page, "spend");
  await page.selectOption("#by", "model");
  await page.getByRole("button", { name: "Show" }).click();
  await page.getByRole("cell", { name: "gpt-5-mini" }).waitFor();
  assert.ok(page.url().includes("by=model"));
  assert.equal(await page.locator("tbody tr").count(), 1);
  await page.getByRole("link", { name: "gpt-5-mini" }).click();
  await page.getByText("What the ledger says of this model").waitFor();
  assert.ok(page.url().includes("model=gpt-5-mini&since="));
  assert.equal(await page.inputValue("#model"), "gpt-5-mini");
  assert.equal(await page.locator("td.key").count(), 8);
  say("what was spent, and what was not");

  await page.getByRole("link", { name: "Operations", exact: true }).click();
  await page.fill("#tenant", "globex");
  await page.selectOption("#state", "completed");
  await page.getByRole("button", { name: "Filter" }).click();
  await page.getByRole("link", { name: "ticket-9912" }).waitFor();
  assert.equal(await page.locator("td.key").count(), 2);
  const shared = page.url();
  assert.ok(shared.includes("tenant=globex") && shared.includes("state=completed"));
  const other = await page.context().newPage();
  await other.goto(shared);
  assert.equal(await other.locator("td.key").count(), 2);
  await other.close();
  await page.goto(`${control}/console/operations`);
  await look(page, "operations");
  say("filter and share link");

  await page.getByRole("link", { name: "invoice-2041" }).click();
  await page.locator("svg.timeline").waitFor();
  assert.equal(await page.locator("svg.timeline .mark line").count(), 3);
  await look(page, "operation");
  await page.getByRole("button", { name: "Show the body" }).click();
  await page.getByText("chat.completion").waitFor();
  say("an operation");

  await page.keyboard.press("g");
  await page.keyboard.press("u");
  const unknown = (key) => page.locator("article", { has: page.getByRole("heading", { name: key }) });
  await unknown("charge-card-66").getByText("Upstream's id").waitFor();
  // No answer of it had begun.
  await unknown("import-batch-3").getByText("Model asked for").waitFor();
  await look(page, "unknown");
  await unknown("charge-card-66").getByRole("link", { name: "Settle it" }).click();
  await page.getByRole("radio", { name: /^It ran/ }).check();
  await page.getByLabel("Body of the answer").fill('{"id":"chatcmpl-66","choices":[]}');
  await look(page, "settle");
  await page.getByLabel("It did not run").check();
  await page.getByRole("button", { name: "Settle" }).click();
  // The browser asks for the reason.
  assert.equal(await page.locator("#reason:invalid").count(), 1);
  await page.fill("#reason", "their list has no trace of it");
  await page.getByRole("button", { name: "Settle" }).click();
  await page.getByText("Because").waitFor();
  await page.locator(".state.released").waitFor();
  say("an unknown is settled");

  await page.goto(`${control}/console/health`);
  await page.getByText("takes writes").waitFor();
  await look(page, "health");
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.getByText("Dark", { exact: true }).click();
  const dark = await background();
  assert.notEqual(light, dark);
  await page.goto(`${control}/console`);
  assert.equal(await background(), dark);
  await look(page, "dark");
  for (const path of ["health", "config"]) {
    await page.goto(`${control}/console/${path}`);
    await look(page, `${path}-dark`);
  }
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
  say("dark mode");
  await page.context().close();

  page = await open({ javaScriptEnabled: false, viewport: { width: 390, height: 844 } });
  await signIn(page, "/console/operations?tenant=globex", viewer);
  assert.equal(page.url(), `${control}/console/operations?tenant=globex`);
  assert.equal(await page.locator("td.key").count(), 0);
  await page.getByRole("link", { name: "Clear", exact: true }).click();
  assert.ok((await page.locator("td.key").count()) > 5);
  assert.equal(await page.getByText("globex").count(), 0);
  await page.goto(`${control}/console/spend?by=tenant`);
  await page.getByRole("cell", { name: "acme" }).waitFor();
  assert.equal(await page.getByText("globex").count(), 0);
  assert.equal((await page.goto(`${control}/console/config`)).status(), 403);
  say("one tenant's token, without JavaScript");

  // What was refused on purpose is told on the console too.
  assert.deepEqual(wrong.filter((line) => !line.includes("403")), []);
  say("no other origin, no error");
};

run(main);
