// Hover and keys on figures, rounds of a heat-map, sorting, filtering, the theme, figures as files.
// Text reaches the page by textContent only.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement;

  // Theme: as the system has it, until the reader chooses.
  const stored = () => { try { return localStorage.getItem("fedsdr-theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("fedsdr-theme", theme); } catch { /* not allowed: for this visit then */ } };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    keep(root.dataset.theme);
  });

  // What a mark of a figure says, at the pointer or, by arrow keys, at the mark.
  const tip = document.getElementById("tip");
  let lit = null;
  function show(mark, x, y) {
    if (lit !== mark) {
      if (lit) lit.classList.remove("lit");
      lit = mark;
      mark.classList.add("lit");
      tip.textContent = mark.dataset.tip;
      tip.hidden = false;
    }
    const box = tip.getBoundingClientRect();
    const left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4));
    const top = y - box.height - 12 > 4 ? y - box.height - 12 : y + 18;
    tip.style.setProperty("transform", `translate(${left}px, ${top}px)`);
  }
  function hide() {
    if (lit) lit.classList.remove("lit");
    lit = null;
    tip.hidden = true;
  }
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (mark) show(mark, event.clientX, event.clientY);
    else if (lit && !(document.activeElement && document.activeElement.contains(lit))) hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const drawing = event.target;
    if (!step || !drawing.classList || !drawing.classList.contains("drawing")) return;
    const marks = [...drawing.querySelectorAll("[data-tip]")];
    if (!marks.length) return;
    event.preventDefault();
    const at = marks.indexOf(lit);
    const next = marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length];
    const box = next.getBoundingClientRect();
    show(next, box.x + box.width / 2, box.y);
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.classList && event.target.classList.contains("drawing")) hide();
  });

  // The rounds of a heat-map: the cells are drawn once and take each round's colours and numbers.
  function slide(figure) {
    const block = figure.querySelector("script.slides");
    if (!block) return;
    const { names, rounds, values } = JSON.parse(block.textContent);
    const input = figure.querySelector("input[type=range]");
    const shown = figure.querySelector("output");
    const group = figure.querySelector("g.cells");
    const cells = [...group.querySelectorAll("rect")];
    const drawn = [...group.querySelectorAll("text")];
    const minus = (text) => text.replace("-", "−");
    function draw() {
      const matrix = values[Number(input.value)];
      shown.textContent = rounds[Number(input.value)];
      input.setAttribute("aria-valuetext", `round ${shown.textContent}`);
      cells.forEach((cell, n) => {
        const row = Math.floor(n / names.length), column = n % names.length;
        const value = matrix[row][column];
        const step = value === null ? 0 : Math.round(Math.max(-1, Math.min(1, value / 100)) * 10);
        const words = value === null ? "–" : minus((value / 100).toFixed(2));
        cell.setAttribute("class", value === null ? "cell none" : `cell d${step + 10}`);
        cell.setAttribute("fill", value === null ? "#ffffff" : colour(step));
        cell.dataset.tip = `${names[row]} × ${names[column]}: ${words}`;
        if (!drawn.length) return;
        drawn[n].textContent = value === null ? "" : words.replace("0.", ".");
        const white = step >= 8 || step <= -9; // as palette.py has it
        drawn[n].setAttribute("class", white ? "number strong" : "number");
        drawn[n].setAttribute("fill", white ? "#ffffff" : "#000000");
      });
    }
    input.addEventListener("input", draw);
    figure.querySelector(".slider").hidden = false;
  }
  function colour(step) { // as palette.py has it, for a saved figure
    const neutral = [243, 244, 246], end = step > 0 ? [0, 84, 147] : [178, 72, 0];
    const mixed = neutral.map((n, i) => Math.round(n + (end[i] - n) * Math.abs(step) / 10));
    return `#${mixed.map((n) => n.toString(16).padStart(2, "0")).join("")}`;
  }

  // A figure as a file: the attributes hold the light colours, so it stands alone.
  function save(figure) {
    const copy = figure.querySelector("svg").cloneNode(true);
    const titled = copy.getAttribute("aria-label");
    if (titled !== null && !copy.querySelector("title")) {
      const title = document.createElementNS(SVG, "title");
      title.textContent = titled;
      title.id = copy.dataset.titled;
      copy.prepend(title);
      copy.setAttribute("aria-labelledby", `${title.id} ${copy.getAttribute("aria-describedby")}`);
      for (const name of ["aria-label", "aria-describedby", "data-titled"]) copy.removeAttribute(name);
    }
    for (const mark of copy.querySelectorAll("[data-tip]")) mark.removeAttribute("data-tip");
    const file = new Blob([`<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(copy)}`], { type: "image/svg+xml" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `${figure.dataset.name}.svg`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".chart .save");
    if (button) save(button.closest(".chart"));
  });

  // Sorting: by data-value where a cell has one, as numbers where they are, else as words.
  function sortable(table) {
    if (!table.tBodies.length || table.tBodies[0].rows.length < 2 || table.querySelector("thead button")) return;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        order(table, column, down ? -1 : 1);
      });
    });
  }
  const UNITS = { "": 1, "%": 1, B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, "×": 1, s: 1 };
  function keyOf(cell) {
    if (!cell) return "";
    if (cell.dataset.value !== undefined) return Number.isNaN(Number(cell.dataset.value)) ? cell.dataset.value : Number(cell.dataset.value);
    const text = cell.textContent.trim();
    const found = /^([+−-]?[\d,]*\.?\d+(?:e[+−-]?\d+)?)\s*(%|B|kB|MB|GB|TB|×|s|)$/.exec(text);
    return found ? Number(found[1].replaceAll("−", "-").replaceAll(",", "")) * UNITS[found[2]] : text;
  }
  const words = new Intl.Collator("en", { numeric: true });
  function order(table, column, sign) {
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
    const empty = (key) => key === "" || key === "–";
    keyed.sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b); // nothing stands last either way
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * words.compare(String(a), String(b));
    });
    body.append(...keyed.map(([, row]) => row));
  }

  // A word that rows must hold.
  function filter(place) {
    const input = place.querySelector("input"), said = place.querySelector("output");
    const table = place.nextElementSibling.querySelector("table");
    if (!table) return;
    const rows = [...table.tBodies[0].rows];
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase().split(/\s+/);
      let left = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
        left += !row.hidden;
      }
      said.textContent = input.value.trim() ? `${left} of ${rows.length}` : "";
    });
    place.hidden = false;
  }

  function enhance(part) {
    for (const table of part.querySelectorAll("table.sortable")) sortable(table);
    for (const figure of part.querySelectorAll(".chart")) slide(figure);
    for (const button of part.querySelectorAll(".chart .save")) button.hidden = false;
    for (const place of part.querySelectorAll(".filter")) filter(place);
    // A title element would pop up over every mark; its words become the label.
    for (const svg of part.querySelectorAll("svg.figure")) {
      const title = svg.querySelector("title");
      if (!title) continue;
      svg.dataset.titled = title.id;
      svg.setAttribute("aria-label", title.textContent);
      svg.setAttribute("aria-describedby", svg.querySelector("desc").id);
      svg.removeAttribute("aria-labelledby");
      title.remove();
    }
  }
  enhance(document);
  document.addEventListener("fedsdr:swapped", (event) => { hide(); enhance(event.detail); });

  // Where the reader is.
  if (matchMedia("(max-width: 60rem)").matches) {
    for (const menu of document.querySelectorAll(".menu")) menu.open = false;
  }
  const links = () => [...document.querySelectorAll(".menu a")];
  let waiting = false;
  function mark() {
    waiting = false;
    let current = null;
    for (const link of links()) {
      const section = document.getElementById(link.getAttribute("href").slice(1));
      if (section && section.getBoundingClientRect().top < innerHeight * 0.35) current = link;
    }
    for (const link of links()) {
      if (link === current) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
  document.addEventListener("scroll", () => {
    if (!waiting) { waiting = true; requestAnimationFrame(mark); }
  }, { passive: true });
})();
