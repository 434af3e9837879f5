"""The page for people in Chromium: python3 check.py CHROMIUM ADDRESS [FOLDER]

ADDRESS serves the five states (page.rs). Each is looked at in light, dark and narrow, by Chromium's own
protocol over a pipe; FOLDER takes the screenshots. Prints what is wrong and exits with 1.
"""

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time

STATES = ["fresh", "busy", "filling", "quarantined", "unavailable"]
# Name, width, colour scheme.
VIEWS = [("light", 1280, "light"), ("dark", 1280, "dark"), ("narrow", 390, "light"), ("narrow-dark", 390, "dark")]
# Longest that anything is waited for; the machine may be busy.
PATIENCE = 30

# What can hide in a name: as in src/http.rs.
UNSEEN = r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u3164\uffa0\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"

LOOK = (
    r"""(() => {
  const wrong = [];
  const rgba = (text) => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n.slice(0, 3), 1] : n; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const describe = (e) => `${e.localName}${e.id ? "#" + e.id : ""}.${e.className} "${e.textContent.trim().slice(0, 40)}"`;

  let least = 99, texts = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest("svg") || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), back = ground(e);
    const ratio = contrast(over(rgba(style.color), back), back);
    texts += 1;
    least = Math.min(least, ratio);
    // Everything is held to what small text needs.
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)} of ${describe(e)}`);
    if (parseFloat(style.fontSize) < 12) wrong.push(`${style.fontSize} is too small to read: ${describe(e)}`);
  }
  for (const svg of document.querySelectorAll("main svg")) {
    const back = ground(svg), line = rgba(getComputedStyle(svg.querySelector(".line")).stroke);
    const panel = over(rgba(getComputedStyle(svg).backgroundColor), back);
    if (contrast(line, panel) < 3) wrong.push(`contrast ${contrast(line, panel).toFixed(2)} of a plot's line`);
    for (const id of svg.getAttribute("aria-labelledby").split(" "))
      if (!svg.querySelector(`[id="${id}"]`)?.textContent) wrong.push(`a plot without ${id}`);
    if (svg.getAttribute("role") !== "img") wrong.push("a plot that is no image");
  }
  // Not the window's own width: a phone's grows with what does not fit.
  const wide = document.scrollingElement.scrollWidth - WIDTH;
  if (wide > 0) wrong.push(`${wide} pixels wider than the window`);
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption?.textContent.trim()) wrong.push("a table without a caption");
    for (const th of table.querySelectorAll("th")) if (!th.scope) wrong.push(`no scope: ${describe(th)}`);
    for (const row of table.tBodies[0].rows) if (!row.querySelector("th[scope=row]")) wrong.push(`a row without a head: ${describe(row)}`);
  }
  let level = 0;
  for (const h of document.querySelectorAll("h1, h2, h3, h4")) {
    const at = Number(h.localName[1]);
    if (at > level + 1) wrong.push(`a heading of level ${at} below one of ${level}`);
    level = at;
  }
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`twice: #${id}`);
  for (const e of document.querySelectorAll("[aria-labelledby]"))
    for (const id of e.getAttribute("aria-labelledby").split(" ")) if (!document.getElementById(id)) wrong.push(`no #${id}`);
  if (document.body.querySelector("script, img, iframe, object, form, input, style, b b")) wrong.push("something in the page that is not ours");
  const all = document.documentElement.outerHTML;
  if (/"""
    + UNSEEN
    + r"""/.test(all)) wrong.push("a character that hides");
  if (all.includes("SECRET")) wrong.push("a secret");
  return { wrong, least, texts };
})()"""
)

HOSTILE = r"""(() => {
  const cells = [...document.querySelectorAll("table.waiting tbody th")].map((th) => th.textContent);
  const text = document.querySelector("main").textContent;
  const wanted = ["loan-<script>hostile('1')</script><img src=x onerror=hostile('2')>", "loan-\\u{202e}fdp.exe\\u{0}\\u{1b}[31m\\u{7}\\u{a}\\u{200b}"];
  const wrong = wanted.filter((name) => !cells.includes(name)).map((name) => `not shown as text: ${name}`);
  if (!text.includes("<b>bold</b> \"' onmouseover='hostile(3)'")) wrong.push("a reason that is not shown as text");
  const long = cells.find((cell) => cell.includes("0123456789"));
  if (!long?.includes("(10,245 characters)") || long.length > 250) wrong.push(`a long name is shown as ${long?.length} characters`);
  if (!text.includes("and 4 more")) wrong.push("the streams that are not shown are not told");
  return wrong;
})()"""

# What a person has at hand must be there after a refresh, and what is new must be there, too.
KEPT = r"""(async () => {
  const wrong = [], wait = (done) => new Promise((resolve) => { const look = () => (done() ? resolve() : setTimeout(look, 20)); look(); });
  const shown = () => document.querySelector("header time").textContent;
  const refresh = () => document.dispatchEvent(new Event("visibilitychange"));
  const settings = document.getElementById("settings");
  settings.open = true;
  const focused = document.querySelector(".scroll, footer a[href=metrics]");
  focused.focus();
  scrollTo(0, 240);
  await new Promise(requestAnimationFrame);
  const read = document.elementFromPoint(innerWidth / 2, 500), from = shown(), place = read.getBoundingClientRect().top;
  if (scrollY === 0) wrong.push("too short a page to scroll");
  refresh();
  await wait(() => shown() !== from);
  await new Promise(requestAnimationFrame);
  if (document.activeElement !== focused) wrong.push("the focus is lost");
  if (!document.getElementById("settings").open) wrong.push("what was open is closed");
  const moved = Math.abs(read.getBoundingClientRect().top - place);
  if (!read.isConnected || moved > 1) wrong.push(`what is read has moved by ${moved} pixels`);

  // While something is selected, nothing moves; paused, neither.
  const asked = () => performance.getEntriesByType("resource").length;
  getSelection().selectAllChildren(document.querySelector("h1"));
  const before = asked();
  refresh();
  if (asked() !== before) wrong.push("refreshed what was selected");
  getSelection().empty();
  document.getElementById("pause").click();
  const held = shown();
  refresh();
  await new Promise((resolve) => setTimeout(resolve, 200));
  if (shown() !== held || document.getElementById("pause").getAttribute("aria-pressed") !== "true") wrong.push("refreshed while paused");
  document.getElementById("pause").click();
  await wait(() => shown() !== held);
  if (document.getElementById("pause").hidden) wrong.push("the button is hidden by a refresh");
  return wrong;
})()"""


class Browser:
    def __init__(self, chromium):
        self.home = tempfile.TemporaryDirectory()
        inward, self.write = os.pipe()
        self.read, outward = os.pipe()
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
            f"--user-data-dir={self.home.name}", "about:blank",
        ]
        shell = f'exec "$0" "$@" 3<&{inward} 4>&{outward}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, chromium, *arguments], pass_fds=(inward, outward), stderr=subprocess.DEVNULL
        )
        os.close(inward)
        os.close(outward)
        self.rest, self.next, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def message(self, until):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0, until - time.monotonic()))
            more = os.read(self.read, 1 << 20) if ready else b""
            if not more:
                raise SystemExit("Chromium does not answer")
            self.rest += more
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def call(self, method, **params):
        self.next += 1
        command = {"id": self.next, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.write, json.dumps(command).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            heard = self.message(until)
            if heard.get("id") == self.next:
                if "error" in heard:
                    raise SystemExit(f"{method}: {heard['error']}")
                return heard["result"]
            self.events.append(heard)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise SystemExit(f"{answer['exceptionDetails']}")
        return answer["result"].get("value")

    def open(self, url, width, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        until = time.monotonic() + PATIENCE
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message(until))

    def complaints(self, origin):
        """What the console has, and what was asked for elsewhere."""
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                yield f"console: {params['args']}"
            if method == "Runtime.exceptionThrown":
                yield f"exception: {params['exceptionDetails']}"
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                yield f"log: {params['entry']['text']}"
            if method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith((origin + "/", "data:")):
                    yield f"a request to {url}"

    def screenshot(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def close(self):
        self.session = None
        os.write(self.write, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.home.cleanup()


def main(chromium, origin, folder=None):
    browser = Browser(chromium)
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="window.hostile = (n) => console.error('ran', n);")
    wrong, least, texts = [], 99, 0
    for state in STATES:
        for view, width, scheme in VIEWS:
            browser.open(f"{origin}/{state}", width, scheme)
            # What is folded up is looked at, too; the picture is of the page as it comes.
            if folder:
                browser.screenshot(os.path.join(folder, f"{state}-{view}.png"))
            browser.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
            found = browser.evaluate(LOOK.replace("WIDTH", str(width)))
            complaints = [*found["wrong"], *browser.complaints(origin)]
            if state == "quarantined":
                complaints += browser.evaluate(HOSTILE)
            wrong += [f"{state}, {view}: {what}" for what in complaints]
            least, texts = min(least, found["least"]), texts + found["texts"]

    browser.open(f"{origin}/moving", 1280, "light")
    wrong += [f"refresh: {what}" for what in browser.evaluate(KEPT)]
    wrong += [f"refresh: {what}" for what in browser.complaints(origin)]

    # A keyboard sees where it is.
    for key in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=key, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    outline = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle + ' ' + document.activeElement.localName")
    if not outline.startswith("solid"):
        wrong.append(f"keyboard: the focus shows as {outline}")

    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(f"{origin}/busy", 1280, "light")
    plain = browser.evaluate(
        "[document.querySelectorAll('noscript meta[http-equiv=refresh]').length, document.querySelectorAll('main svg').length,"
        " document.getElementById('pause').checkVisibility()]"
    )
    if plain != [1, 6, False]:
        wrong.append(f"without a script: {plain}")
    wrong += [f"without a script: {what}" for what in browser.complaints(origin)]
    browser.close()

    print(f"{len(STATES)} states in {len(VIEWS)} views, {texts} texts, least contrast {least:.2f}")
    for what in dict.fromkeys(wrong):
        print(f"  {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
