// Brings the page up to date in place: what is the same stays, so that the reading position, the
// keyboard's focus, what is open and what is selected survive. Without this the page reloads itself.
"use strict";
{
  const every = 5000;
  let paused = false;
  let timer;

  const same = (old, fresh) => old.nodeName === fresh.nodeName && (old.id ?? "") === (fresh.id ?? "");

  // Makes `old` like `fresh`, which is the same element. Whoever opened a part has it open.
  const renew = (old, fresh) => {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE || old.hasAttribute("data-own")) return;
    for (const { name } of [...old.attributes]) {
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    let at = old.firstChild;
    for (const node of [...fresh.childNodes]) {
      let match = at;
      while (match && !same(match, node)) match = match.nextSibling;
      if (!match) {
        old.insertBefore(node, at);
        continue;
      }
      while (at !== match) {
        const next = at.nextSibling;
        at.remove();
        at = next;
      }
      at = match.nextSibling;
      renew(match, node);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  const say = (text) => {
    const line = document.getElementById("heard");
    if (line.textContent !== text) line.textContent = text;
    document.documentElement.classList.toggle("stale", text !== "");
  };

  const refresh = async () => {
    clearTimeout(timer);
    if (!paused && !document.hidden && getSelection().isCollapsed) {
      try {
        const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(every) });
        if (!answer.ok) throw new Error(answer.status);
        // The style is here already; another's nonce would be refused.
        const text = (await answer.text()).replace(/<style[^]*?<\/style>/, "");
        const fresh = new DOMParser().parseFromString(text, "text/html");
        if (!paused) {
          document.title = fresh.title;
          renew(document.querySelector("link[rel=icon]"), fresh.querySelector("link[rel=icon]"));
          renew(document.body, fresh.body);
          say("");
        }
      } catch {
        say("No answer any more: this is how it stood at the time above.");
      }
    }
    timer = setTimeout(refresh, every);
  };

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("pause");
    button.hidden = false;
    button.addEventListener("click", () => {
      paused = !paused;
      button.setAttribute("aria-pressed", paused);
      if (!paused) refresh();
    });
    document.addEventListener("visibilitychange", refresh);
    timer = setTimeout(refresh, every);
  });
}
