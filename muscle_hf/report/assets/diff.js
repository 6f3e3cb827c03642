"use strict";
// Texts from data as page nodes: control characters spelled out, long texts cut, words compared. Only text nodes are
// made from data; the page's policy forbids anything else.

// The same characters as in muscle_hf/report/text.py.
const ACTING = new RegExp(
  "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f" +
  "\\ufeff\\ufff9-\\ufffb\\ud800-\\udfff\\ufffe\\uffff\\u{e0000}-\\u{e007f}]", "gu");
const MAX_SHOWN = 4000;      // characters of a text before "show all"
const MAX_CELLS = 4000000;   // of the comparison table: two answers of 2,000 words
const MAX_LAID_OUT = 50000;  // characters that are laid out at once and compared; longer texts come in chunks
const CHUNK = 10000;

function codePoint(character) {
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

function visibleText(text) {
  return text.replace(/\r\n/g, "\n").replace(ACTING, (character) => "⟨" + codePoint(character) + "⟩");
}

function oneLine(text, limit) {
  const line = visibleText(text.slice(0, 4 * limit).trim().replace(/[ \t]*\r?\n\s*/g, " ⏎ "));
  return line.length > limit ? line.slice(0, limit - 1) + "…" : line;
}

// A name: cut in the middle, as names with a common beginning differ at their ends.
function nameOf(text, limit) {
  const line = visibleText(text.trim().replace(/\s+/g, " ")), half = limit >> 1;
  return line.length > limit ? line.slice(0, half) + "…" + line.slice(line.length - (limit - 1 - half)) : line;
}

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Text with its control characters as little framed names.
function appendText(parent, text) {
  let at = 0;
  text = text.replace(/\r\n/g, "\n");
  for (const match of text.matchAll(ACTING)) {
    if (match.index > at) parent.append(text.slice(at, match.index));
    const mark = element("span", "control", codePoint(match[0]));
    mark.title = "control character";
    parent.append(mark);
    at = match.index + match[0].length;
  }
  if (at < text.length) parent.append(text.slice(at));
}

function words(text) {
  // Scripts written without spaces are compared character by character.
  return text.match(/\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|./gsu) || [];
}

// Pieces [kind, text] that turn a into b: "=" in both, "-" only in a, "+" only in b. Longest common subsequence of
// words; texts too long for that are compared by their common beginning and end alone.
function wordDiff(a, b) {
  const left = words(a), right = words(b);
  let start = 0, end = 0;
  const shorter = Math.min(left.length, right.length);
  while (start < shorter && left[start] === right[start]) start++;
  while (end < shorter - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end++;
  const x = left.slice(start, left.length - end), y = right.slice(start, right.length - end);
  const pieces = start ? [["=", left.slice(0, start).join("")]] : [];
  const push = (kind, text) => {
    if (!text) return;
    const last = pieces[pieces.length - 1];
    if (last && last[0] === kind) last[1] += text; else pieces.push([kind, text]);
  };
  if ((x.length + 1) * (y.length + 1) > MAX_CELLS) {
    push("-", x.join(""));
    push("+", y.join(""));
  } else {
    const width = y.length + 1, table = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i--) {
      for (let j = y.length - 1; j >= 0; j--) {
        table[i * width + j] = x[i] === y[j] ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
      }
    }
    let i = 0, j = 0;
    while (i < x.length && j < y.length) {
      if (x[i] === y[j]) { push("=", x[i]); i++; j++; }
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) push("-", x[i++]);
      else push("+", y[j++]);
    }
    push("-", x.slice(i).join(""));
    push("+", y.slice(j).join(""));
  }
  push("=", end ? left.slice(left.length - end).join("") : "");
  return pieces;
}

// A long text as blocks that the browser lays out when they come into view; cut at line breaks or spaces.
function appendChunks(parent, text) {
  for (let at = 0; at < text.length;) {
    let end = Math.min(at + CHUNK, text.length);
    if (end < text.length) {
      const breaks = [text.lastIndexOf("\n", end), text.lastIndexOf(" ", end)].filter((place) => place > at);
      if (breaks.length) end = breaks[0] + 1;
      else if (/[\ud800-\udbff]/.test(text[end - 1])) end++;
    }
    const chunk = element("span", "chunk");
    appendText(chunk, text.slice(at, end));
    parent.append(chunk);
    at = end;
  }
}

// Whether two texts have enough in common for their differences to say more than the texts themselves.
function alike(pieces) {
  const length = (kinds) => pieces.reduce((sum, [kind, text]) => sum + (kinds.includes(kind) ? text.trim().length : 0), 0);
  return 2 * length("=") >= length("+-");
}

// A button that copies a text exactly as it is, control characters and all.
function copyButton(text) {
  const button = element("button", "copy", "Copy");
  button.type = "button";
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
    catch (error) { button.textContent = "The browser does not allow it"; }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return button;
}

// A block with a text, or with its difference from `base`; long ones are cut until asked for.
function textBlock(text, base) {
  const block = element("pre", "block data");
  block.dir = "auto";
  block.tabIndex = 0;
  const fill = (limit) => {
    block.textContent = "";
    const shown = text.slice(0, limit);
    if (shown.length > MAX_LAID_OUT) appendChunks(block, shown);
    else {
      const plain = base === undefined || base === null || base === text;
      const pieces = plain ? [["=", shown]] : wordDiff(base.slice(0, limit), shown);
      if (!alike(pieces)) appendText(block, shown);
      else for (const [kind, piece] of pieces) {
        const node = kind === "=" ? block : element(kind === "+" ? "ins" : "del");
        appendText(node, piece);
        if (node !== block) block.append(node);
      }
    }
    if (text.length > limit) block.append("…");
  };
  fill(MAX_SHOWN);
  if (text === "") block.append(element("span", "soft", "(empty)"));
  if (text.length <= MAX_SHOWN) return [block];
  const more = element("button", "more-text", "Show all " + text.length.toLocaleString("en") + " characters");
  more.type = "button";
  more.addEventListener("click", () => { fill(Infinity); more.remove(); block.focus(); });
  return [block, more];
}
