// The list of flips: filter, search, sort, and one page of it in the document at a time.
(() => {
  const PAGE = 25, MOST_VALUES = 1000;
  const [TASK, ID, OUTCOMES, PROMPT, TARGET, ANSWERS, SCORES, CHOICES, COLUMNS, SEVERITY, INHERITED, OWN, RATES, NOISE] =
    Array(14).keys();
  const WORSE = "ND", BETTER = "PI", RIGHT = "RP";
  const OLD_RIGHT = "RN";
  const NAMES = {
    R: "right, as before", P: "right, old was wrong", W: "wrong, as before", N: "wrong, old was right",
    I: "better than old", U: "as old", D: "worse than old", "-": "unknown",
  };
  const source = document.getElementById("flip-data");
  const data = JSON.parse(source.textContent);
  source.remove();
  const flips = data.flips, labels = data.models, updated = labels.slice(1);
  const short = labels.map((label) => nameOf(label, 60));
  const find = (id) => document.getElementById(id);
  const state = { page: 0, found: flips, words: [] };
  let haystacks = null;

  // Filters: what a model does to the old one's answers, and what a compatibility model does to the update's.
  const filters = [["All flips", () => true]];
  updated.forEach((_, at) => {
    filters.push(["Broken by " + short[at + 1], (flip) => WORSE.includes(flip[OUTCOMES][at])]);
    filters.push(["Improved by " + short[at + 1], (flip) => BETTER.includes(flip[OUTCOMES][at])]);
  });
  updated.forEach((_, at) => {
    if (at === 0) return;
    const worse = (flip, model) => WORSE.includes(flip[OUTCOMES][model]);
    filters.push(["Broken by " + short[1] + ", not by " + short[at + 1], (flip) => worse(flip, 0) && !worse(flip, at)]);
    filters.push(["Broken by " + short[at + 1] + ", not by " + short[1], (flip) => !worse(flip, 0) && worse(flip, at)]);
    // Errors that the old model made and the update had shed.
    const again = (flip, letters) => flip[INHERITED] !== null && letters.includes(flip[INHERITED][at]);
    if (!flips.some((flip) => again(flip, "SOA"))) return;
    filters.push([short[0] + "'s errors made again by " + short[at + 1], (flip) => again(flip, "SOA")]);
    if (flips.some((flip) => again(flip, "SO"))) {
      filters.push(["… with " + short[0] + "'s answer, by " + short[at + 1], (flip) => again(flip, "S")]);
    }
  });

  if (flips.some((flip) => flip[NOISE])) {
    filters.push(["Flips by themselves (noise)", (flip) => flip[NOISE]], ["No noise", (flip) => !flip[NOISE]]);
  }

  const collator = new Intl.Collator("en", { numeric: true });
  const longest = (flip) => Math.max(0, ...flip[ANSWERS].map((answer) => (answer || "").length));
  const orders = [
    ["Worst first", (flip) => -flip[SEVERITY]],
    ["Id", null],
    ["Task", (flip) => flip[TASK]],
    ["Shortest prompt", (flip) => (flip[PROMPT] || "").length],
    ["Longest answer", (flip) => -longest(flip)],
  ];

  function haystack(index) {
    if (haystacks === null) haystacks = new Array(flips.length);
    if (haystacks[index] === undefined) {
      const flip = flips[index];
      haystacks[index] = [flip[ID], flip[PROMPT], flip[TARGET], ...flip[ANSWERS], ...flip[COLUMNS]]
        .filter((text) => text).join("\n").toLowerCase();
    }
    return haystacks[index];
  }

  function update() {
    const keep = filters[find("filter").value][1];
    const task = find("task").value, column = find("column").value, value = find("value").value;
    const matches = column === "" ? null : matcher(column, value);
    state.words = find("search").value.toLowerCase().split(/\s+/).filter((word) => word);
    let found = [];
    for (let index = 0; index < flips.length; index++) {
      const flip = flips[index];
      if (task !== "" && flip[TASK] !== Number(task)) continue;
      if (column !== "" && !matches(flip[COLUMNS][column])) continue;
      if (!keep(flip)) continue;
      if (state.words.length && !state.words.every((word) => haystack(index).includes(word))) continue;
      found.push(flip);
    }
    const key = orders[find("sort").value][1];
    if (key === null) found.sort((a, b) => collator.compare(a[ID], b[ID]));
    else {
      const keyed = found.map((flip) => [key(flip), flip]);
      keyed.sort((a, b) => a[0] - b[0]);
      found = keyed.map((pair) => pair[1]);
    }
    state.found = found;
    show(0);
  }

  function show(page) {
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    state.page = Math.min(Math.max(page, 0), pages - 1);
    const first = state.page * PAGE;
    const rows = state.found.slice(first, first + PAGE).map(row);
    find("list").replaceChildren(...rows);
    find("list").start = first + 1;
    const all = flips.length.toLocaleString("en");
    const cut = data.total > flips.length ? " (the worst of " + data.total.toLocaleString("en") + ")" : "";
    find("count").textContent = flips.length === 0 ? "No item changed."
      : state.found.length.toLocaleString("en") + " of " + all + " flips" + cut;
    find("page").textContent = "Page " + (state.page + 1).toLocaleString("en") + " of " + pages.toLocaleString("en");
    find("previous").disabled = state.page === 0;
    find("next").disabled = state.page === pages - 1;
    find("open-all").disabled = rows.length === 0;
  }

  function mark(flip, at) {
    const outcome = at === 0 ? flip[OUTCOMES][0] : flip[OUTCOMES][at - 1];
    if ("IUD".includes(outcome)) {
      if (at === 0) return ["", "·", "the reference point"];
      return [outcome === "D" ? "bad" : outcome === "I" ? "good" : "", { I: "↑", U: "=", D: "↓" }[outcome], NAMES[outcome]];
    }
    if (outcome === "-") return ["", "?", NAMES[outcome]];
    if (at === 0) return OLD_RIGHT.includes(outcome) ? ["", "✓", "right"] : ["", "✗", "wrong"];
    const css = outcome === "N" ? "bad" : outcome === "P" ? "good" : "";
    return [css, RIGHT.includes(outcome) ? "✓" : "✗", NAMES[outcome]];
  }

  function row(flip) {
    const item = element("li"), details = element("details", "flip"), head = element("summary");
    const marks = element("span", "marks");
    labels.forEach((_, at) => {
      const [css, sign, meaning] = mark(flip, at);
      const badge = element("span", "badge " + css, short[at] + " " + sign);
      badge.title = short[at] + ": " + meaning;
      badge.setAttribute("role", "img");
      badge.setAttribute("aria-label", short[at] + ": " + meaning);
      marks.append(badge);
    });
    if (flip[NOISE]) {
      const badge = element("span", "badge", "flips by itself");
      badge.title = "runs of one and the same model answer this item now right, now wrong";
      marks.append(badge);
    }
    const name = (data.tasks.length > 1 ? oneLine(data.tasks[flip[TASK]], 40) + " · " : "") + oneLine(flip[ID], 60);
    marks.append(element("span", "id data", name));
    const lead = element("span", "lead data", oneLine(flip[PROMPT] === null ? flip[ID] : flip[PROMPT], 240));
    lead.dir = "auto";
    head.append(marks, lead, glance(flip));
    details.append(head);
    const fill = () => {
      if (details.childElementCount > 1) details.lastElementChild.remove();
      if (details.open) details.append(body(flip));
    };
    details.addEventListener("toggle", () => { if (details.open && details.childElementCount === 1) fill(); });
    details.refill = fill;
    item.append(details);
    return item;
  }

  // The target, the old answer and the first answer that flips.
  function glance(flip) {
    const line = element("span", "meta");
    const flipping = [...flip[OUTCOMES]].findIndex((outcome) => (WORSE + BETTER).includes(outcome)) + 1;
    const texts = flip[TARGET] === "" ? [[short[0], flip[ANSWERS][0]]]
      : flip[ANSWERS][0] === flip[TARGET] ? [["target and " + short[0], flip[TARGET]]]
      : [["target", flip[TARGET]], [short[0], flip[ANSWERS][0]]];
    if (flipping > 0) texts.push([short[flipping], flip[ANSWERS][flipping]]);
    for (const [title, text] of texts) {
      if (text === null) continue;
      const cell = element("span", "", title + ": ");
      cell.append(element("span", "data", oneLine(text, 70)));
      line.append(cell);
    }
    return line;
  }

  function part(title, ...children) {
    const node = element("div");
    node.append(element("h4", "", title), ...children);
    return node;
  }

  // Built when a flip is opened: the comparison of words costs too much to do for all.
  function body(flip) {
    const node = element("div", "body");
    if (flip[PROMPT] !== null) node.append(part("Prompt", ...textBlock(flip[PROMPT])));
    if (flip[TARGET] !== "") node.append(part("Target", ...textBlock(flip[TARGET])));
    const answers = element("div", "answers");
    labels.forEach((_, at) => answers.append(answer(flip, at)));
    node.append(answers);
    if (flip[CHOICES] !== null) node.append(part("Choices", choices(data.choices[flip[CHOICES]])));
    const columns = element("div", "columns");
    flip[COLUMNS].forEach((value, at) => {
      if (value === null) return;
      const cell = element("span", "data");
      appendText(cell, oneLine(data.columns[at], 60) + ": " + oneLine(value, 200));
      columns.append(cell);
    });
    if (columns.childElementCount) node.append(columns);
    return node;
  }

  function answer(flip, at) {
    const [, sign, meaning] = mark(flip, at), text = flip[ANSWERS][at], base = at === 0 ? null : flip[ANSWERS][0];
    const tone = sign === "✓" || sign === "↑" ? " good" : sign === "✗" || sign === "↓" ? " bad" : "";
    const score = flip[SCORES] === null || flip[SCORES][at] === null ? "" : ", score " + flip[SCORES][at].toFixed(3);
    const rate = flip[RATES] === null || flip[RATES][at] === null ? "" : ", right in " + Math.round(100 * flip[RATES][at]) + "%";
    const compared = base === null || text === null || base !== text ? "" : ", same words as " + short[0];
    const node = part(short[at] + " " + sign + " " + meaning + score + rate + compared);
    node.className = "answer" + tone;
    if (text === null) node.append(element("p", "soft", "The log does not hold the answer."));
    else {
      node.append(...textBlock(text, find("differences").checked ? base : null));
      if (text !== "") node.append(copyButton(text));
    }
    if (flip[OWN] !== null) node.append(own(flip[OWN][at]));
    return node;
  }

  // What the model's own log says of its answer: reasoning, grades, tokens, ...
  function own(columns) {
    const node = element("div", "own");
    for (const [name, value] of Object.entries(columns)) {
      if (value.length > 80 || value.includes("\n")) node.append(element("span", "", nameOf(name, 60)), ...textBlock(value));
      else {
        const cell = element("span", "data");
        appendText(cell, nameOf(name, 60) + ": " + value);
        node.append(cell);
      }
    }
    return node;
  }

  function choices(texts) {
    const list = element("ol", "choices");
    for (const text of texts) {
      const item = element("li", "data");
      item.dir = "auto";
      appendText(item, oneLine(text, 400));
      list.append(item);
    }
    return list;
  }

  function options(select, names, values) {
    select.replaceChildren(...names.map((name, at) => {
      const option = element("option", "", name);
      option.value = values ? values[at] : at;
      return option;
    }));
  }

  const known = new Map();
  function valuesOf(column) {
    if (!known.has(column)) {
      const values = new Set(flips.map((flip) => flip[COLUMNS][column]).filter((value) => value !== null));
      known.set(column, [...values].sort(collator.compare));
    }
    return known.get(column);
  }

  // Slices of numbers are ranges: "<= 3", "3 to 5" (without 3), "> 5".
  function rangeOf(text) {
    const [, most, low, high, more] = /^(?:<= (\S+)|(\S+) to (\S+)|> (\S+))$/.exec(text) || [];
    const range = [Number(low ?? more ?? -Infinity), Number(high ?? most ?? Infinity)];
    return range.some(Number.isNaN) || (most ?? low ?? more) === undefined ? null : range;
  }

  // Test of a column's value: any, the value with an index, or one within the range of a slice.
  function matcher(column, chosen) {
    if (chosen === "") return () => true;
    if (chosen.startsWith("range ")) {
      const [low, high] = rangeOf(chosen.slice(6));
      return (value) => value !== null && Number(value) > low && Number(value) <= high;
    }
    const wanted = valuesOf(column)[chosen];
    return (value) => value === wanted;
  }

  function chooseColumn(range) {
    const column = find("column").value;
    find("value-label").hidden = column === "";
    const values = column === "" ? [] : valuesOf(column).slice(0, MOST_VALUES);
    const names = ["any", ...values.map((value) => oneLine(value, 60))], keys = ["", ...values.keys()];
    options(find("value"), range ? [...names, range] : names, range ? [...keys, "range " + range] : keys);
  }

  // Columns to choose from: those that could be categories, and those of the slices.
  function categories() {
    const sliced = new Set([...document.querySelectorAll("button[data-column]")].map((button) => button.dataset.column));
    return [...data.columns.keys()]
      .filter((at) => valuesOf(at).length <= MOST_VALUES || sliced.has(visibleText(data.columns[at])));
  }

  options(find("filter"), filters.map((filter) => filter[0]));
  options(find("sort"), orders.map((order) => order[0]));
  options(find("task"), ["All tasks", ...data.tasks.map((name) => oneLine(name, 60))], ["", ...data.tasks.keys()]);
  const shownColumns = categories();
  options(find("column"), ["any", ...shownColumns.map((at) => oneLine(data.columns[at], 40))], ["", ...shownColumns]);
  find("task-label").hidden = data.tasks.length < 2;
  find("column-label").hidden = shownColumns.length === 0;
  chooseColumn();

  let timer = 0;
  find("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, 150); });
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["filter", "sort", "task", "value"]) find(id).addEventListener("change", update);
  find("column").addEventListener("change", () => { chooseColumn(); update(); });
  find("differences").addEventListener("change", () => {
    for (const details of document.querySelectorAll(".flip[open]")) details.refill();
  });
  // A link to a task opens it.
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.matches("details")) { target.open = true; target.scrollIntoView(); }
  };
  window.addEventListener("hashchange", openTarget);
  openTarget();
  const turn = (by) => { show(state.page + by); find("flips").scrollIntoView(); };
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  find("open-all").addEventListener("click", () => {
    for (const details of document.querySelectorAll(".flip")) details.open = true;
  });
  // A press on a slice shows its flips.
  for (const button of document.querySelectorAll("button[data-column]")) {
    button.addEventListener("click", () => {
      const column = data.columns.findIndex((name) => visibleText(name) === button.dataset.column);
      if (column < 0) return;
      find("task").value = button.dataset.task;
      find("column").value = column;
      const at = valuesOf(column).findIndex((value) => visibleText(value) === button.dataset.value);
      const range = at < 0 && rangeOf(button.dataset.value) ? button.dataset.value : null;
      chooseColumn(range);
      find("value").value = range ? "range " + range : at < 0 ? "" : at;
      update();
      find("flips").scrollIntoView();
    });
  }
  update();
})();
