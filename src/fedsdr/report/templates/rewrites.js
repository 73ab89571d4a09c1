"use strict";

// The viewer: filters, list and the one rewrite chosen. All text is set as text, never as HTML.
(() => {
  const PAGE = 50;
  const LENGTHS = [
    ["shorter than half of raw", 0, 0.5], ["0.5 to 0.9 times", 0.5, 0.9],
    ["about as long", 0.9, 1.1], ["1.1 to 2 times", 1.1, 2], ["over 2 times", 2, Infinity],
  ];
  let inline = false; // the same for every rewrite, until it is changed

  function make(tag, properties = {}, ...children) {
    const { class: name, data = {}, ...rest } = properties;
    const element = document.createElement(tag);
    if (name) element.className = name;
    Object.assign(element.dataset, data);
    for (const [key, value] of Object.entries(rest)) {
      if (key.startsWith("aria-") || key === "role") element.setAttribute(key, value);
      else element[key] = value;
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const times = (ratio) => `${ratio >= 10 ? ratio.toFixed(0) : ratio.toFixed(1)}×`;

  async function unpack(payload) {
    if (payload.json) return payload.json;
    if (!("DecompressionStream" in window)) {
      throw new Error("This browser cannot unpack the rewrites; one from 2023 or later can.");
    }
    const bytes = Uint8Array.fromBase64?.(payload.gzip)
      ?? Uint8Array.from(atob(payload.gzip), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  async function begin(root, box, trouble) {
    let held;
    try {
      held = await unpack(JSON.parse(root.querySelector("[data-rewrites-payload]").textContent));
    } catch (error) {
      trouble.hidden = false;
      trouble.textContent = `The rewrites cannot be shown. ${error.message}`;
      return;
    }
    box.hidden = false;
    viewer(box, held);
  }

  function viewer(box, { names, rows, cut }) {
    const anchor = box.dataset.rewrites;
    const count = rows.id.length;
    const form = box.querySelector("form"), field = (name) => form.elements[name];
    const list = box.querySelector(".rw-list"), detail = box.querySelector(".rw-detail");
    const state = { kinds: 0, matching: [], at: 0 };
    let lower = null;

    // -- filters --------------------------------------------------------------------------------
    const bandOf = (i) => LENGTHS.findIndex(([, from, to]) => rows.ratio[i] >= from && rows.ratio[i] < to);
    const facets = {
      client: { all: "all clients", words: names.clients, of: (i) => rows.client[i] },
      outcome: { all: "kept or not", words: ["fell back", "kept"], of: (i) => rows.kept[i] },
      ratio: { all: "any length", words: LENGTHS.map(([words]) => words), of: bandOf },
      verdict: { all: "any verdict", words: names.verdicts, of: (i) => rows.verdict[i] },
    };
    for (const [name, facet] of Object.entries(facets)) {
      facet.values = Int16Array.from({ length: count }, (_, i) => facet.of(i));
      field(name).append(new Option("", "-1"), ...facet.words.map((_, v) => new Option("", String(v))));
    }
    if (!names.verdicts.length) form.querySelector("[data-only=verdict]").hidden = true;
    const kindButtons = names.kinds.map((words, kind) => make("button", {
      type: "button", class: "rw-kind", "aria-pressed": "false", data: { kind },
    }, words, " ", make("span", { class: "rw-count" })));
    form.querySelector(".rw-kinds").append(...kindButtons.filter((_, kind) =>
      rows.kinds.some((bits) => bits >> kind & 1)));

    function textOf(i) {
      lower ??= rows.id.map((id, k) =>
        [id, rows.prompt[k], rows.raw[k], rows.written[k]].join("\n").toLowerCase());
      return lower[i];
    }

    function filter() {
      const wanted = Object.entries(facets).map(([name, facet]) => [facet, Number(field(name).value)]);
      const sought = field("search").value.toLowerCase().split(/\s+/u).filter(Boolean);
      const counts = new Map(wanted.map(([facet]) => [facet, new Int32Array(facet.words.length + 1)]));
      const perKind = new Int32Array(names.kinds.length);
      const matching = [];
      for (let i = 0; i < count; i++) {
        if ((rows.kinds[i] & state.kinds) !== state.kinds) continue;
        let failed = 0, missed = null;
        for (const [facet, value] of wanted) {
          if (value >= 0 && facet.values[i] !== value) { failed++; missed = facet; }
        }
        if (failed > 1 || (sought.length && !sought.every((word) => textOf(i).includes(word)))) continue;
        // A choice counts what it would show together with all the other choices.
        for (const [facet] of wanted) {
          if (!failed || missed === facet) {
            counts.get(facet)[0]++;
            if (facet.values[i] >= 0) counts.get(facet)[facet.values[i] + 1]++;
          }
        }
        if (failed) continue;
        for (let kind = 0; kind < perKind.length; kind++) perKind[kind] += rows.kinds[i] >> kind & 1;
        matching.push(i);
      }
      for (const [name, facet] of Object.entries(facets)) {
        const shown = counts.get(facet);
        Array.from(field(name).options).forEach((option, at) => {
          const words = at ? facet.words[at - 1] : facet.all;
          option.textContent = `${words} (${shown[at].toLocaleString("en")})`;
          option.disabled = at > 0 && !shown[at] && !option.selected;
        });
      }
      for (const [kind, button] of kindButtons.entries()) {
        const pressed = state.kinds >> kind & 1;
        button.setAttribute("aria-pressed", String(Boolean(pressed)));
        button.lastChild.textContent = perKind[kind].toLocaleString("en");
        button.disabled = !pressed && !perKind[kind];
      }
      state.matching = sorted(matching);
    }

    function sorted(matching) {
      const bits = (n) => { let c = 0; for (; n; n &= n - 1) c++; return c; };
      const by = {
        damage: (x, y) => bits(rows.kinds[y]) - bits(rows.kinds[x]),
        longest: (x, y) => rows.ratio[y] - rows.ratio[x],
        shortest: (x, y) => rows.ratio[x] - rows.ratio[y],
      }[field("order").value];
      return by ? matching.sort((x, y) => by(x, y) || x - y) : matching;
    }

    function again(keep) {
      const chosen = state.matching[state.at];
      filter();
      const at = keep ? state.matching.indexOf(chosen) : 0;
      choose(Math.max(at, 0), false);
    }

    // -- list -----------------------------------------------------------------------------------
    const called = (i) => [names.clients[rows.client[i]], rows.id[i]]
      .filter((name, at, [, id]) => at || !id.startsWith(name)).join(" · ");
    const optionId = (i) => `${anchor}-row-${i}`;

    function showList() {
      const { matching, at } = state, from = at - at % PAGE;
      const pages = Math.max(1, Math.ceil(matching.length / PAGE));
      list.replaceChildren(...matching.slice(from, from + PAGE).map((i, k) => make("li", {
        role: "option", id: optionId(i), class: rows.kept[i] ? "" : "rw-fell",
        "aria-selected": String(from + k === at), data: { at: from + k },
      },
      make("span", { class: "rw-row-top" },
        make("span", { class: "rw-row-id" }, called(i)),
        make("span", { class: "rw-row-ratio" }, times(rows.ratio[i]))),
      make("span", { class: "rw-row-text", dir: "auto" }, rows.prompt[i].slice(0, 160)),
      make("span", { class: "rw-row-kinds" }, [rows.kept[i] ? "kept" : "fell back",
        ...names.kinds.filter((_, kind) => rows.kinds[i] >> kind & 1)].join(" · ")))));
      list.setAttribute("aria-activedescendant", matching.length ? optionId(matching[at]) : "");
      const chosen = list.querySelector("[aria-selected=true]");
      if (chosen) bring(chosen);
      box.querySelector("[data-status]").textContent = matching.length === count
        ? `${many(count, "rewrite")}` : `${matching.length.toLocaleString("en")} of ${many(count, "rewrite")}`;
      box.querySelector("[data-reset]").hidden = matching.length === count;
      box.querySelector("[data-pages]").textContent = matching.length
        ? `${from + 1}–${Math.min(from + PAGE, matching.length)}` : "none";
      const turn = { "-1": from === 0, 1: from / PAGE + 1 >= pages };
      for (const button of box.querySelectorAll("[data-page]")) button.disabled = turn[button.dataset.page];
    }

    /** Into the list's own view; the page stays where its reader is. */
    function bring(row) {
      const [inner, outer] = [row.getBoundingClientRect(), list.getBoundingClientRect()];
      if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top;
      else if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
    }

    const linkTo = (i) => `#${anchor}/${[names.clients[rows.client[i]], rows.id[i]].map(encodeURIComponent).join("/")}`;

    function choose(at, remember = true) {
      const before = state.at - state.at % PAGE;
      state.at = Math.min(Math.max(at, 0), Math.max(state.matching.length - 1, 0));
      const old = list.querySelector("[aria-selected=true]");
      const now = list.querySelector(`[data-at="${state.at}"]`);
      if (remember && now && before === state.at - state.at % PAGE) {
        old?.setAttribute("aria-selected", "false");
        now.setAttribute("aria-selected", "true");
        list.setAttribute("aria-activedescendant", now.id);
        bring(now);
      } else showList();
      const i = state.matching[state.at];
      showDetail(i);
      if (remember && i !== undefined) history.replaceState(null, "", linkTo(i));
    }

    // -- the rewrite chosen -----------------------------------------------------------------------
    function showDetail(i) {
      if (i === undefined) {
        detail.replaceChildren(make("p", { class: "note" }, "No rewrite matches all of these filters."));
        return;
      }
      const reasons = rows.reasons[i].map((r) => names.reasons[r]);
      const kinds = names.kinds.filter((_, kind) => rows.kinds[i] >> kind & 1);
      const verdict = rows.verdict[i] >= 0 ? names.verdicts[rows.verdict[i]] : null;
      detail.replaceChildren(...[
        make("header", {},
          make("h3", {}, make("span", { class: "rw-client" }, names.clients[rows.client[i]]), " ", rows.id[i]),
          make("a", { class: "rw-link", href: linkTo(i) }, "link to this")),
        make("p", { class: "rw-outcome" },
          make("strong", { class: rows.kept[i] ? "rw-kept" : "rw-fallen" },
            rows.kept[i] ? "Kept" : "Fell back to the raw answer"),
          rows.kept[i] || !reasons.length ? "" : `: the rewrite ${reasons.join(", ")}`,
          rows.kept[i] && kinds.length ? `, though: ${kinds.join(", ")}` : "",
          `. ${times(rows.ratio[i])} as many words as the raw answer.`,
          verdict ? ` Exact verdict: ${verdict}.` : "",
          rows.domain[i] >= 0 && names.domains[rows.domain[i]] ? ` Domain: ${names.domains[rows.domain[i]]}.` : ""),
        facts(i),
        make("h4", {}, "Question"), textBox(i, "prompt", [make("span", {}, rows.prompt[i])]),
        views(), comparison(i, "Rewrite", rows.written[i], "written"),
        ...(typeof rows.trained[i] === "string"
          ? [make("p", { class: "note" }, "What is trained on is neither of the two:"),
            comparison(i, "Trained on", rows.trained[i], "trained")]
          : [])].filter(Boolean));
    }

    function facts(i) {
      const lists = [
        ["lost", "Numbers lost", rows.numbers_lost[i]], ["invented", "Numbers invented", rows.numbers_invented[i]],
        ["lost", "Names lost", rows.names_lost[i]], ["invented", "Names invented", rows.names_invented[i]],
      ].filter(([, , values]) => values.length);
      return lists.length ? make("dl", { class: "rw-facts" }, ...lists.map(([mark, words, values]) =>
        make("div", {}, make("dt", {}, words), make("dd", {}, ...values.map((value) =>
          make("mark", { class: `rw-${mark}` }, make("bdi", {}, value))))))) : null;
    }

    function textBox(i, name, children) {
      const whole = cut[i]?.[name];
      return make("div", { class: "rw-text" },
        make("div", { dir: "auto" }, ...children),
        whole ? make("p", { class: "note" },
          `Cut: this page holds the start of ${whole.toLocaleString("en")} characters.`) : null);
    }

    function views() {
      const button = (words, value) => make("button", {
        type: "button", "aria-pressed": String(inline === value), data: { inline: String(value) },
      }, words);
      return make("div", { class: "rw-views" },
        make("div", { role: "group", "aria-label": "How to compare" },
          button("Side by side", false), button("Inline", true)),
        make("p", { class: `rw-legend${inline ? " rw-inline" : ""}`, "aria-hidden": "true" },
          make("del", {}, "only in raw"), make("ins", {}, "only in the rewrite"),
          make("mark", { class: "rw-lost" }, "lost"), make("mark", { class: "rw-invented" }, "invented")));
    }

    function comparison(i, title, text, name) {
      const raw = rows.raw[i];
      const [before, after] = [rewriteDiff.words(raw), rewriteDiff.words(text)];
      const ops = rewriteDiff.diff(before, after);
      const lost = rewriteDiff.places(raw, rows.numbers_lost[i], rows.names_lost[i]);
      const invented = rewriteDiff.places(text, rows.numbers_invented[i], rows.names_invented[i]);
      if (inline) {
        return make("div", { class: "rw-sides rw-single rw-inline" }, make("section", {},
          make("h4", {}, `Raw answer → ${title.toLowerCase()}`),
          textBox(i, name, inlinePieces(raw, text, before, after, ops, lost, invented))));
      }
      const side = (heading, own, tokens, which, marks, tag, mark, key, trained) => make("section", {},
        make("h4", {}, heading, trained ? make("span", { class: "rw-badge" }, "trained on") : null),
        textBox(i, key, rewriteDiff.pieces(own, tokens, ops, which, marks).map((p) => piece(p, tag, mark))));
      return make("div", { class: "rw-sides" },
        side("Raw answer", raw, before, 0, lost, "del", "lost", "raw", rows.trained[i] === 0),
        side(title, text, after, 1, invented, "ins", "invented", name, rows.trained[i] === 1));
    }

    function piece({ text, changed, mark }, tag, kind) {
      const inner = mark ? make("mark", { class: `rw-${kind}`, title: kind }, text) : text;
      return changed ? make(tag, {}, inner) : mark ? inner : document.createTextNode(text);
    }

    function inlinePieces(raw, text, before, after, ops, lost, invented) {
      const slice = (own, tokens, from, to) => [from ? tokens[from - 1].end : 0, to ? tokens[to - 1].end : 0];
      const within = (marks, start, end) => marks.filter((m) => m[0] < end && m[1] > start)
        .map(([x, y]) => [Math.max(x, start) - start, Math.min(y, end) - start]);
      const cutOut = (own, tokens, from, to, marks, tag, kind) => {
        const [start, end] = slice(own, tokens, from, to);
        const part = own.slice(start, end);
        const all = tag ? [["changed", 0, 1, 0, 1]] : [];
        const gap = part.length - part.trimStart().length;
        return rewriteDiff.pieces(part, [{ start: gap, end: part.length }], all, 0, within(marks, start, end))
          .map((p) => piece(p, tag, kind));
      };
      const found = ops.flatMap(([op, a0, a1, b0, b1]) => op === "same"
        ? cutOut(text, after, b0, b1, invented, null, "invented")
        : [...(a1 > a0 ? cutOut(raw, before, a0, a1, lost, "del", "lost") : []),
          ...(b1 > b0 ? cutOut(text, after, b0, b1, invented, "ins", "invented") : [])]);
      return [...found, document.createTextNode(text.slice(after.at(-1)?.end ?? 0))];
    }

    // -- what the reader does ---------------------------------------------------------------------
    function setView(value) {
      inline = value;
      showDetail(state.matching[state.at]);
      detail.querySelector(`[data-inline="${value}"]`)?.focus();
    }

    function showAll() {
      form.reset();
      state.kinds = 0;
      again(true);
    }

    let typing = 0;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      clearTimeout(typing);
      if (event.target.name === "search") typing = setTimeout(() => again(false), 150);
      else again(false);
    });
    box.addEventListener("click", (event) => {
      const hit = (selector) => event.target.closest(selector);
      if (hit("[data-kind]")) { state.kinds ^= 1 << Number(hit("[data-kind]").dataset.kind); again(false); }
      else if (hit("[data-at]")) choose(Number(hit("[data-at]").dataset.at));
      else if (hit("[data-page]")) choose(state.at - state.at % PAGE + PAGE * Number(hit("[data-page]").dataset.page));
      else if (hit("[data-inline]")) setView(hit("[data-inline]").dataset.inline === "true");
      else if (hit("[data-reset]")) showAll();
    });
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typed = event.target.matches("input, select, textarea");
      if (event.key === "Escape" && typed) { list.focus(); return; }
      if (typed) return;
      const step = { j: 1, k: -1, ...(event.target === list ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
      if (step) choose(state.at + step);
      else if (event.target === list && event.key === "Home") choose(0);
      else if (event.target === list && event.key === "End") choose(state.matching.length - 1);
      else if (event.key === "v") setView(!inline);
      else if (event.key === "/") field("search").focus();
      else return;
      event.preventDefault();
    });

    /** `#rewrites/client/id` opens that rewrite. */
    function follow() {
      const parts = location.hash.slice(1).split("/");
      if (parts.length !== 3 || parts[0] !== anchor || !box.isConnected) return;
      const linked = `#${parts.join("/")}`;
      const i = rows.id.findIndex((_, k) => linkTo(k) === linked);
      if (i < 0) {
        box.querySelector("[data-status]").textContent = "The rewrite linked to is not in this page’s sample.";
        return;
      }
      if (!state.matching.includes(i)) showAll();
      choose(state.matching.indexOf(i));
      box.scrollIntoView();
      list.focus({ preventScroll: true });
    }

    filter();
    choose(0, false);
    follow();
    window.addEventListener("hashchange", follow);
  }

  function enhance(root) {
    for (const box of root.querySelectorAll("[data-rewrites]")) {
      const around = box.parentElement;
      begin(around, box, around.querySelector("[data-rewrites-trouble]"));
    }
  }

  enhance(document);
  document.addEventListener("fedsdr:swapped", (event) => enhance(event.detail));
})();
