// The list of runs: sort by a column, find by words and state, tick several and compare.
"use strict";
(() => {
  const find = document.getElementById("run-filter");
  const state = document.getElementById("run-state");
  const compare = document.getElementById("run-compare");
  const clear = document.getElementById("run-clear");
  const count = document.getElementById("run-count");
  if (!find) return;

  const table = () => document.getElementById("run-list");
  const rows = () => (table() ? [...table().tBodies[0].rows] : []);
  const ticked = () => rows().map((row) => row.querySelector("input:checked")).filter(Boolean);

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows()) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word));
      row.hidden = !fits || (state.value !== "" && row.dataset.state !== state.value);
      shown += row.hidden ? 0 : 1;
    }
    const all = rows().length;
    const said = shown === all ? `${all}` : `${shown} of ${all}`;
    count.textContent = `${said} ${all === 1 ? "run" : "runs"}`;
  }

  function mark() {
    const chosen = ticked().length;
    compare.disabled = chosen < 2;
    compare.textContent = chosen < 2 ? "Compare ticked runs" : `Compare ${chosen} runs`;
    clear.hidden = chosen === 0;
  }

  function sort(head) {
    const column = [...head.parentElement.cells].indexOf(head);
    const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentElement.cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", way);
    const keyOf = (row) => (row.cells[column] ? row.cells[column].dataset.key || "" : "");
    const sign = way === "ascending" ? 1 : -1;
    const sorted = rows().sort((a, b) => {
      const [x, y] = [keyOf(a), keyOf(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stands last
      const numbers = Number(x) - Number(y);
      return sign * (Number.isNaN(numbers) ? x.localeCompare(y, undefined, { numeric: true }) : numbers);
    });
    table().tBodies[0].append(...sorted);
  }

  // Listened for on the document, since the table is replaced whenever a run changes.
  document.addEventListener("click", (event) => {
    const head = event.target.closest("#run-list th[aria-sort]");
    if (head) sort(head);
  });
  document.addEventListener("change", (event) => {
    if (event.target.name === "run") mark();
  });
  document.addEventListener("fedsdr:swapped", () => {
    filter();
    mark();
  });
  find.addEventListener("input", filter);
  state.addEventListener("input", filter);
  clear.addEventListener("click", () => {
    for (const box of ticked()) box.checked = false;
    mark();
  });
  compare.addEventListener("click", () => {
    const chosen = ticked().map((box) => ["run", box.value]);
    location.assign(`/compare?${new URLSearchParams(chosen)}`);
  });
  filter();
  mark();
})();
