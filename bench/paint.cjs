// Opens a page in Chromium, once and then so many times, and prints for each but the first the milliseconds
// until its first paint.
"use strict";
const { chromium } = require("playwright-core");

(async () => {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
  const page = await (await browser.newContext()).newPage();
  const times = [];
  for (let round = 0; round <= Number(process.argv[3]); round += 1) {
    await page.goto(process.argv[2], { waitUntil: "load" });
    const paint = await page.waitForFunction(() =>
      performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
    times.push(await paint.jsonValue());
  }
  console.log(times.slice(1).join(" "));
  await browser.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
