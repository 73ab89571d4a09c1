"use strict";

// A diff by words: pure, so that it can be tested alone.
const rewriteDiff = (() => {
  const TOKEN = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+(?:[.,'’-][\p{L}\p{M}\p{N}_]+)*|[^\s]/gu;
  const EXACT = 1_500_000; // cells of the table of an exact comparison: some 10 ms

  /** Words, numbers and signs of a text, with their places. */
  function words(text) {
    return Array.from(text.matchAll(TOKEN), (found) => ({
      text: found[0], start: found.index, end: found.index + found[0].length,
    }));
  }

  /** [[op, a0, a1, b0, b1], …] over tokens; op is "same" or "changed" (either side may be empty). */
  function diff(before, after) {
    const numbers = new Map();
    const numbered = (tokens) => Int32Array.from(tokens, (token) => {
      if (!numbers.has(token.text)) numbers.set(token.text, numbers.size);
      return numbers.get(token.text);
    });
    const a = numbered(before), b = numbered(after), pairs = [];
    match(a, 0, a.length, b, 0, b.length, pairs);
    return calm(runs(pairs, a.length, b.length), before, after);
  }

  /** Matching places in order: equal ends, then exactly, or between words that occur but once. */
  function match(a, a0, a1, b, b0, b1, pairs) {
    while (a0 < a1 && b0 < b1 && a[a0] === b[b0]) pairs.push([a0++, b0++]);
    const tail = [];
    while (a0 < a1 && b0 < b1 && a[a1 - 1] === b[b1 - 1]) tail.push([--a1, --b1]);
    if (a0 < a1 && b0 < b1) {
      if ((a1 - a0) * (b1 - b0) <= EXACT) exact(a, a0, a1, b, b0, b1, pairs);
      else {
        // Without a word that stands once on each side, so large a stretch counts as rewritten.
        const fixed = anchors(a, a0, a1, b, b0, b1);
        for (const [i, j] of fixed.length ? [...fixed, [a1, b1]] : []) {
          match(a, a0, i, b, b0, j, pairs);
          if (i < a1) pairs.push([i, j]);
          [a0, b0] = [i + 1, j + 1];
        }
      }
    }
    for (const pair of tail.reverse()) pairs.push(pair);
  }

  /** The longest common subsequence, by the table. */
  function exact(a, a0, a1, b, b0, b1, pairs) {
    const width = b1 - b0 + 1;
    const best = new Uint16Array((a1 - a0 + 1) * width);
    const at = (i, j) => (i - a0) * width + (j - b0);
    for (let i = a1 - 1; i >= a0; i--) {
      for (let j = b1 - 1; j >= b0; j--) {
        best[at(i, j)] = a[i] === b[j]
          ? best[at(i + 1, j + 1)] + 1
          : Math.max(best[at(i + 1, j)], best[at(i, j + 1)]);
      }
    }
    for (let i = a0, j = b0; i < a1 && j < b1;) {
      if (a[i] === b[j]) pairs.push([i++, j++]);
      else if (best[at(i + 1, j)] >= best[at(i, j + 1)]) i++;
      else j++;
    }
  }

  /** Words that occur once on each side, the longest row of them in the same order (patience). */
  function anchors(a, a0, a1, b, b0, b1) {
    const once = (list, from, to) => {
      const seen = new Map();
      for (let i = from; i < to; i++) seen.set(list[i], seen.has(list[i]) ? -1 : i);
      return seen;
    };
    const there = once(b, b0, b1);
    const piles = [], last = [];
    for (const [word, i] of once(a, a0, a1)) {
      const j = there.get(word);
      if (i < 0 || j === undefined || j < 0) continue;
      let low = 0, high = piles.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (piles[middle].j < j) low = middle + 1;
        else high = middle;
      }
      piles[low] = { i, j, before: low ? piles[low - 1] : null };
      last.length = 0;
    }
    for (let node = piles.at(-1) ?? null; node; node = node.before) last.push([node.i, node.j]);
    return last.reverse();
  }

  function runs(pairs, aEnd, bEnd) {
    const found = [];
    let i = 0, j = 0;
    for (const [x, y] of [...pairs, [aEnd, bEnd]]) {
      if (x > i || y > j) found.push(["changed", i, x, j, y]);
      if (x < aEnd || y < bEnd) {
        const before = found.at(-1);
        if (before?.[0] === "same") { before[2] = x + 1; before[4] = y + 1; }
        else found.push(["same", x, x + 1, y, y + 1]);
      }
      [i, j] = [x + 1, y + 1];
    }
    return found;
  }

  /** A lone "the" between two rewritten stretches is no common ground: it reads as one change. */
  function calm(found, before, after) {
    const size = (tokens, from, to) => {
      let letters = 0;
      for (let i = from; i < to; i++) letters += tokens[i].text.length;
      return letters;
    };
    const merged = [];
    for (const run of found) {
      const [same, changed] = [merged.at(-1), merged.at(-2)];
      if (run[0] === "changed" && same?.[0] === "same" && changed) {
        const weight = (r) => Math.max(size(before, r[1], r[2]), size(after, r[3], r[4]));
        if (size(before, same[1], same[2]) <= Math.min(weight(changed), weight(run), 8)) {
          merged.splice(-2, 2, ["changed", changed[1], run[2], changed[3], run[4]]);
          continue;
        }
      }
      merged.push([...run]);
    }
    return merged;
  }

  /** Where the numbers and names of a list stand in a text: [[start, end], …], in order. */
  function places(text, numbers, names) {
    const found = [];
    const wanted = new Set(numbers.map(plainNumber));
    if (wanted.size) {
      for (const token of text.matchAll(/[-−]?\.?\d(?:[\d.,'’\u00a0\u202f\u2009]*\d)?(?:\s?%)?/gu)) {
        const [whole, bare] = [plainNumber(token[0]), plainNumber(token[0].replace(/^[-−]|\s?%$/gu, ""))];
        if (wanted.has(whole) || wanted.has(bare)) found.push([token.index, token.index + token[0].length]);
      }
    }
    for (const name of names) {
      const inner = name.split(/[\s'’-]+/u).filter(Boolean).map((w) => w.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&"));
      if (!inner.length) continue;
      const pattern = new RegExp(`(?<![\\p{L}\\p{N}])${inner.join("[\\s'’.-]+")}(?![\\p{L}\\p{N}])`, "giu");
      for (const hit of text.matchAll(pattern)) found.push([hit.index, hit.index + hit[0].length]);
    }
    found.sort((x, y) => x[0] - y[0] || y[1] - x[1]);
    let end = 0;
    return found.filter((hit) => hit[0] >= end && (end = hit[1]));
  }

  /** "1,000.50" and "1000.5" are one number; so are "1.000,5" and "1000.5". */
  function plainNumber(written) {
    const percent = written.includes("%") ? "%" : "";
    const sign = /^[-−]/u.test(written) ? "-" : "";
    let digits = written.replace(/[^\d.,]/gu, "");
    if (/\d,\d+$/u.test(digits) && (digits.includes(".") || !/^\d{1,3}(,\d{3})+$/u.test(digits))) {
      digits = digits.lastIndexOf(",") > digits.lastIndexOf(".")
        ? digits.replace(/\./g, "").replace(",", ".")
        : digits;
    } else if (/^\d{1,3}(\.\d{3}){2,}$/u.test(digits)) digits = digits.replace(/\./g, "");
    const [whole, decimals = ""] = digits.replace(/,/g, "").split(".");
    const rest = decimals.replace(/0+$/u, "");
    return sign + (whole.replace(/^0+(?=\d)/u, "") || "0") + (rest ? `.${rest}` : "") + percent;
  }

  /** Stretches of one side: {text, changed, mark}; the space between words goes with the words. */
  function pieces(text, tokens, ops, side, marks) {
    const changed = [];
    for (const op of ops) {
      const [from, to] = side ? [op[3], op[4]] : [op[1], op[2]];
      if (op[0] === "changed" && from < to) changed.push([tokens[from].start, tokens[to - 1].end]);
    }
    const cuts = new Set([0, text.length]);
    for (const [start, end] of [...changed, ...marks]) cuts.add(start).add(end);
    const places = [...cuts].sort((x, y) => x - y);
    const inside = (ranges) => {
      let at = 0;
      return (place) => {
        while (at < ranges.length && ranges[at][1] <= place) at++;
        return at < ranges.length && ranges[at][0] <= place;
      };
    };
    const [isChanged, isMarked] = [inside(changed), inside(marks)];
    return places.slice(0, -1).map((start, at) => ({
      text: text.slice(start, places[at + 1]), changed: isChanged(start), mark: isMarked(start),
    }));
  }

  return { words, diff, places, plainNumber, pieces };
})();
