// The console works without this. It adds: the theme, live sections, how long ago, keys, the body.
"use strict";

// The theme, before anything is painted.
const theme = () => {
  try { return localStorage.getItem("theme") || "auto"; } catch { return "auto"; }
};
const paint = (value) => {
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
};
paint(theme());

const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

const switchTheme = () => {
  const box = $(".theme");
  if (!box) return;
  box.hidden = false;
  for (const input of all("input", box)) {
    input.checked = input.value === theme();
    input.addEventListener("change", () => {
      try { localStorage.setItem("theme", input.value); } catch { /* It holds for this page. */ }
      paint(input.value);
    });
  }
};

// Moments of the last day say how long ago they are.
const DAY = 86400;
const ago = (seconds) => {
  if (seconds < 5) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return `${Math.floor(seconds / 3600)} h ago`;
};
const tick = () => {
  for (const time of all("time")) {
    time.dataset.full ??= time.textContent;
    const seconds = Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000);
    const text = seconds >= 0 && seconds < DAY ? ago(seconds) : time.dataset.full;
    if (time.textContent !== text) time.textContent = text;
  }
};

// What a person has begun in a section is not taken away from them.
const isBusy = (section) =>
  section.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")
  || all("form.settle", section).some((form) => form.dataset.touched);

// A live change takes the focus from nobody: what has it now has it afterwards, or what then stands in
// its place.
const focusable = (section) => all("a[href], button, input, select, textarea, summary, [tabindex]", section);
const nameOf = (element) => `${element.tagName} ${element.id || element.getAttribute("href") || element.textContent}`;
const keepFocus = (section) => {
  const at = focusable(section).indexOf(document.activeElement);
  if (at < 0) return () => {};
  const name = nameOf(document.activeElement);
  return () => {
    const now = section.isConnected ? focusable(section).filter((element) => !element.hidden) : [];
    const next = now.find((element) => nameOf(element) === name) ?? now[Math.min(at, now.length - 1)];
    (next ?? $("main")).focus({ preventScroll: true });
  };
};

const replace = (section, html) => {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const before = new Set(all("td.key a", section).map((link) => link.href));
  const refocus = keepFocus(section);
  const open = all("details", section).map((details) => details.open);
  const shown = $("[data-shown]", section);
  const scrolled = $("pre", shown ?? section)?.scrollTop;
  section.replaceChildren(fresh.content);
  if (shown) {
    $("[data-recording]", section).replaceWith(shown);
    $("pre", shown).scrollTop = scrolled;
  }
  all("details", section).forEach((details, index) => {
    if (index in open) details.open = open[index];
  });
  const added = before.size === 0 ? [] : all("td.key a", section).filter((link) => !before.has(link.href));
  for (const link of added) link.closest("tr").classList.add("new");
  enliven(section);
  refocus();
  return added.length;
};

// The sections that the page has now, in their order.
const arrange = (main, ids) => {
  for (const section of all(":scope > div", main)) {
    if (ids.includes(section.id) || isBusy(section)) continue;
    const refocus = keepFocus(section);
    section.remove();
    refocus();
  }
  let last = null;
  for (const id of ids) {
    let section = document.getElementById(id);
    if (!section) {
      section = document.createElement("div");
      section.id = id;
      if (last) last.after(section); else main.prepend(section);
    }
    last = section;
  }
};

const follow = (main) => {
  const sign = $(".live");
  const source = new EventSource(`/console/live?page=${encodeURIComponent(main.dataset.live)}`);
  source.addEventListener("open", () => { sign.hidden = false; sign.classList.remove("lost"); });
  source.addEventListener("error", () => sign.classList.add("lost"));
  source.addEventListener("layout", (event) => arrange(main, JSON.parse(event.data)));
  source.addEventListener("section", (event) => {
    const { id, html } = JSON.parse(event.data);
    const section = document.getElementById(id);
    const probe = document.createElement("div");
    probe.innerHTML = html;
    if (section.dataset.last === undefined) {
      section.dataset.last = "";
      if (probe.textContent === section.dataset.text) return;
    }
    if (isBusy(section)) return;
    // A body that somebody looks at stays, also where there is none any more.
    if ($("[data-shown]", section) && !$("[data-recording]", probe)) return;
    const added = replace(section, html);
    if (added > 0) $("#said").textContent = `${added} new`;
    tick();
  });
  window.addEventListener("pagehide", () => source.close());
};

// The body is asked for when it is wanted, and followed while it grows.
const LONGEST = 1 << 20;
const show = async (box) => {
  const button = $("[data-show]", box);
  box.dataset.shown = "";
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  pre.role = "region";
  pre.ariaLabel = "The body";
  box.append(pre);
  if (document.activeElement === button) pre.focus({ preventScroll: true });
  button.hidden = true;
  const say = (text) => {
    const line = document.createElement("p");
    line.className = "muted small";
    line.textContent = text;
    box.append(line);
  };
  try {
    const answer = await fetch(box.dataset.recording);
    if (!answer.ok) { say((await answer.json()).detail); return; }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let shown = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) { if (shown === 0) say("The body is empty."); break; }
      pre.append(value);
      shown += value.length;
      if (shown > LONGEST) { say("There is more: download it."); reader.cancel(); break; }
    }
  } catch {
    say("It broke off: there is no whole recording.");
  }
};

const copy = async (button, text) => {
  await navigator.clipboard?.writeText(text);
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
};

// What a section needs once it is there.
const enliven = (section) => {
  for (const button of all("[data-copy]", section)) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button, button.dataset.copy));
  }
  for (const button of all("[data-copy-address]", section)) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button, location.href));
  }
  for (const box of all("[data-recording]:not([data-shown])", section)) {
    const button = $("[data-show]", box);
    button.hidden = false;
    button.addEventListener("click", () => show(box));
  }
  for (const form of all("form.settle", section)) {
    form.addEventListener("input", () => { form.dataset.touched = "1"; });
  }
};

const GO = { o: "/console", p: "/console/operations", s: "/console/spend", u: "/console/unknown", h: "/console/health", c: "/console/config" };
let isGoing = false;
const step = (by) => {
  const links = all("td.key a, .case h2 a");
  const at = links.indexOf(document.activeElement);
  links[Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
};
const onKey = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  const wasGoing = isGoing;
  isGoing = false;
  if (wasGoing && GO[event.key]) { location.href = GO[event.key]; return; }
  if (event.key === "g") isGoing = true;
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "?") $("#keys")?.showModal();
  else if (event.key === "/" && $(".filters input")) { event.preventDefault(); $(".filters input").focus(); }
};

document.addEventListener("DOMContentLoaded", () => {
  switchTheme();
  enliven(document);
  const main = $("main[data-live]");
  if (main) {
    for (const section of main.children) section.dataset.text = section.textContent;
    follow(main);
    document.addEventListener("keydown", onKey);
  }
  tick();
  setInterval(tick, 1000);
});
