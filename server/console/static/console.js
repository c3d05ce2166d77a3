// Renews what changes: each element with `data-live` is replaced by its like of the same page, every two seconds or every
// `data-seconds`. Without this script the pages have a link to reload them.
"use strict";

const live = document.querySelector("[data-live]");
const period = 1000 * Number(live?.dataset.seconds ?? 2);
const pause = document.querySelector("[data-pause]");
const told = document.querySelector("[data-live-state]");
let paused = false;

function replace(fresh) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const found = fresh.querySelector(`[data-live="${CSS.escape(old.dataset.live)}"]`);
    // Somebody who reads with the keyboard or opened a part of it is not to lose the place.
    if (old.contains(document.activeElement) || old.querySelector("details[open]")) continue;
    if (found && found.innerHTML !== old.innerHTML) old.replaceWith(document.adoptNode(found));
    if (!found) location.reload(); // it has ended
  }
}

async function renew() {
  if (!paused && !document.hidden) {
    try {
      const answer = await fetch(location.href, { headers: { "x-lethe-live": "1" }, redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect" || answer.status === 401) return location.reload(); // the session is over
      if (!answer.ok) throw new Error(String(answer.status));
      replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      if (told) told.textContent = "";
    } catch {
      if (told) told.textContent = "The server does not answer; trying again.";
    }
  }
  setTimeout(renew, period);
}

if (live) {
  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Go on" : "Pause";
    });
  }
  const reload = document.querySelector("[data-reload]");
  if (reload) reload.hidden = true;
  setTimeout(renew, period);
}

for (const field of document.querySelectorAll("[data-select]")) field.addEventListener("focus", () => field.select());
