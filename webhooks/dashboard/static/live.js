"use strict";
// Keeps [data-live] parts of a page up to date: every second and a half while something is unfinished, less often or not
// at all when nothing is, and never while nobody looks. Pages work without it.
const BUSY_MS = 1500;

function ages(root) {
  for (const time of root.querySelectorAll("time[data-age]")) {
    const at = new Date(time.dateTime);
    const seconds = (Date.now() - at) / 1000;
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([s]) => Math.abs(seconds) >= s) || [1, "s"];
    const text = `${Math.floor(Math.abs(seconds) / size)} ${unit}`;
    const said = Math.abs(seconds) < 1 ? "now" : seconds < 0 ? `in ${text}` : `${text} ago`;
    if (time.textContent !== said) time.textContent = said;
    time.title = time.title || at.toLocaleString();
  }
}

// Replaces the content, but keeps every keyed part that the server sent just so before: no flicker, no lost focus in it.
function patch(place, html, sent) {
  const next = document.createElement("template");
  next.innerHTML = html;
  const targets = (part) => [...part.querySelectorAll("a, button, summary")];
  const focused = document.activeElement.closest("[data-key]");
  const nth = focused && targets(focused).indexOf(document.activeElement);
  const open = [...place.querySelectorAll("details")].map((details) => details.open);
  const standing = new Map([...place.querySelectorAll("[data-key]")].map((part) => [part.dataset.key, part]));
  for (const part of next.content.querySelectorAll("[data-key]")) {
    const [key, text] = [part.dataset.key, part.outerHTML];
    if (sent.get(key) === text && standing.has(key)) part.replaceWith(standing.get(key));
    sent.set(key, text);
  }
  place.replaceChildren(next.content);
  if (focused && !focused.contains(document.activeElement)) {
    const part = [...place.querySelectorAll("[data-key]")].find((other) => other.dataset.key === focused.dataset.key);
    if (part) targets(part)[nth]?.focus();
  }
  [...place.querySelectorAll("details")].forEach((details, i) => { if (open[i]) details.open = true; });
  ages(place);
}

function follow(place) {
  const sent = new Map();
  let last = "";
  async function look() {
    if (document.hidden) return document.addEventListener("visibilitychange", look, { once: true });
    let wait = 5000;
    try {
      const response = await fetch(place.dataset.live, { headers: { "X-Fragment": "1" } });
      if (response.status === 401) return location.reload();
      if (response.ok) {
        const html = await response.text();
        if (html !== last) patch(place, html, sent);
        last = html;
        place.classList.remove("stale");
        wait = response.headers.get("X-Unfinished") === "1" ? BUSY_MS : Number(place.dataset.idle || 0);
      }
    } catch { place.classList.add("stale"); }
    if (wait) setTimeout(look, wait);
  }
  if (!("finished" in place.dataset)) setTimeout(look, BUSY_MS / 3);
}

ages(document);
setInterval(() => document.hidden || ages(document), 1000);
document.querySelectorAll("[data-live]").forEach(follow);
document.addEventListener("change", (event) => {
  if ("submit" in event.target.dataset) event.target.form.requestSubmit();
});
for (const form of document.querySelectorAll("[data-drop]")) {
  form.classList.add("enhanced");
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    form.elements.file.files = event.dataTransfer.files;
    form.requestSubmit();
  });
}
