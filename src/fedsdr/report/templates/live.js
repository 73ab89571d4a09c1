// Keeps a page as its run directory is: when the server tells of a change, the page is fetched again
// and the parts that differ are put in place of the old ones, with what the reader has done to them.
"use strict";
(() => {
  const root = document.querySelector("[data-live]");
  if (!root) return;
  const PARTS = "main > [id], body > header, body > nav.contents";
  const STATEFUL = "details, input, select, textarea, th[aria-sort], [role=tab], button[aria-pressed]";
  const NEWEST = Symbol("newest");
  const LATER = 2000; // milliseconds

  const keyOf = (part) => part.id || part.localName;
  const partsOf = (doc) => new Map([...doc.querySelectorAll(PARTS)].map((p) => [keyOf(p), p]));
  // As the server wrote them: this runs before any other script changes the page.
  const source = new Map([...partsOf(document)].map(([key, part]) => [key, part.outerHTML]));

  const address = new URL(root.dataset.live, location.href);
  let stream = null;
  let paused = false;
  let fetching = false;
  let again = false;

  const bar = document.createElement("nav");
  bar.className = "live";
  bar.setAttribute("aria-label", "Live page");
  const make = (name, text) => {
    const made = document.createElement(name);
    made.textContent = text;
    bar.append(made);
    return made;
  };
  const home = make("a", "All runs");
  home.href = "/";
  if (location.pathname === "/") home.setAttribute("aria-current", "page");
  const dot = make("span", "");
  dot.className = "live-dot";
  dot.setAttribute("aria-hidden", "true");
  const status = make("span", "");
  status.setAttribute("role", "status");
  const clock = make("span", "");
  clock.className = "live-clock";
  const pause = make("button", "Pause");
  pause.type = "button";
  document.body.prepend(bar);

  function say(state, text) {
    bar.dataset.state = state;
    if (status.textContent !== text) status.textContent = text;
  }

  function connect() {
    if (stream || paused || document.hidden) return;
    stream = new EventSource(address);
    stream.onopen = () => say("live", "Live");
    stream.onmessage = (event) => {
      address.searchParams.set("seen", event.data);
      refresh();
    };
    stream.onerror = () => {
      if (stream && stream.readyState === EventSource.CLOSED) {
        stream = null;
        say("lost", "Not live: start fedsdr serve again and open the address it prints");
      } else {
        say("waiting", "Waiting for the server");
      }
    };
  }

  function disconnect() {
    if (stream) stream.close();
    stream = null;
  }

  // A browser holds few connections to one place: a tab that nobody sees gives its own back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) disconnect();
    else connect();
  });
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", connect);
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    disconnect();
    if (paused) say("waiting", "Paused");
    else connect();
  });

  async function refresh() {
    again = fetching;
    if (fetching) return;
    fetching = true;
    try {
      const answer = await fetch(location.href, { cache: "no-store", redirect: "error" });
      if (answer.ok) {
        swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
        clock.textContent = `updated ${new Date().toLocaleTimeString()}`;
        say("live", "Live");
      } else {
        say("waiting", answer.status === 404 ? "This run is not there any more" : "Cannot be shown");
      }
    } catch {
      say("waiting", "Waiting for the server");
    } finally {
      fetching = false;
      if (again) refresh();
    }
  }

  function swap(doc) {
    const anchor = beingRead();
    const fresh = partsOf(doc);
    const old = partsOf(document);
    for (const [key, part] of old) {
      if (!fresh.has(key) && source.has(key)) {
        part.remove();
        source.delete(key);
      }
    }
    let before = null;
    for (const [key, part] of fresh) {
      const html = part.outerHTML;
      const there = old.get(key);
      if (source.get(key) === html) {
        before = there;
        continue;
      }
      if (there && isSelected(there)) {
        setTimeout(refresh, LATER); // what the reader is copying stays until then
        before = there;
        continue;
      }
      const placed = document.importNode(part, true);
      const state = there ? remember(there) : null;
      if (there) there.replaceWith(placed);
      else if (before) before.after(placed);
      else if (part.parentElement.localName === "main") document.querySelector("main").prepend(placed);
      else continue;
      source.set(key, html);
      document.dispatchEvent(new CustomEvent("fedsdr:swapped", { detail: placed }));
      if (state) restore(placed, state);
      before = placed;
    }
    if (document.title !== doc.title) document.title = doc.title;
    if (anchor) {
      const now = document.getElementById(anchor.id);
      if (now) scrollBy({ top: now.getBoundingClientRect().top - anchor.top, behavior: "instant" });
    }
  }

  // The part that is being read: it stays where it is, whatever changes above it.
  function beingRead() {
    if (scrollY === 0) return null;
    let found = null;
    for (const part of document.querySelectorAll("main > [id]")) {
      const { top } = part.getBoundingClientRect();
      if (found && top > innerHeight / 4) break;
      found = { id: part.id, top };
    }
    return found;
  }

  function isSelected(part) {
    const selection = getSelection();
    return !selection.isCollapsed && part.contains(selection.anchorNode);
  }

  // Which element of a part stands for which of its successor: by its id or name, else by its place.
  function named(part) {
    const seen = new Map();
    return [...part.querySelectorAll(`${STATEFUL}, a, button, summary, [tabindex]`)].map((element) => {
      const value = ["checkbox", "radio"].includes(element.type) ? element.value : "";
      const kind = `${element.localName} ${element.id || element.name || ""} ${value}`;
      seen.set(kind, (seen.get(kind) || 0) + 1);
      return [`${kind} ${seen.get(kind)}`, element];
    });
  }

  function remember(part) {
    const state = { fields: new Map(), focus: null, scrolled: new Map() };
    for (const [key, element] of named(part)) {
      if (element.matches(STATEFUL)) state.fields.set(key, stateOf(element));
      if (element === document.activeElement) state.focus = key;
      if (element.scrollTop || element.scrollLeft) {
        state.scrolled.set(key, [element.scrollTop, element.scrollLeft]);
      }
    }
    return state;
  }

  function stateOf(element) {
    switch (element.localName) {
      case "details":
        return element.open;
      case "th":
        return element.getAttribute("aria-sort");
      case "button":
        return element.getAttribute("aria-selected") || element.getAttribute("aria-pressed");
      case "input":
        if (["checkbox", "radio"].includes(element.type)) return element.checked;
        // Whoever looks at the newest round wants to see the next one too.
        return element.type === "range" && element.value === element.max ? NEWEST : element.value;
      default:
        return element.value;
    }
  }

  function restore(part, state) {
    for (const [key, element] of named(part)) {
      if (state.fields.has(key)) put(element, state.fields.get(key));
    }
    for (const [key, element] of named(part)) {
      const scrolled = state.scrolled.get(key);
      if (scrolled) [element.scrollTop, element.scrollLeft] = scrolled;
      if (key === state.focus) element.focus({ preventScroll: true });
    }
  }

  function put(element, wanted) {
    if (stateOf(element) === wanted || wanted === NEWEST) return;
    if (element.matches("[role=tab]")) {
      if (wanted === "true") element.click();
    } else if (element.localName === "button") {
      element.click();
    } else if (element.localName === "details") {
      element.open = wanted;
    } else if (element.localName === "th") {
      const button = element.querySelector("button");
      for (let click = 0; button && click < 2 && stateOf(element) !== wanted; click += 1) button.click();
    } else {
      if (typeof wanted === "boolean") element.checked = wanted;
      else element.value = wanted;
      for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, { bubbles: true }));
    }
  }

  say("waiting", "Waiting for the server");
  connect();
})();
