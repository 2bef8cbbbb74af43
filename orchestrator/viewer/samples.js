// Samples: a table of those of a step, searched, filtered, sorted and paged by the server; of two runs in pairs.
import { ask, at, calmly, cell, element, number, oneLine } from "./common.js";
import { attempt, heads, show, state } from "./page.js";
import { searchAgain, wireEverywhere } from "./everywhere.js";
import { closeSample, openSample, sampleIsOpen } from "./sample.js";

const PAGE = 50;
const HIDDEN = ["step", "seed", "version", "prompt_id", "response_id", "prompt_length", "trained", "other_row", "row"];
const PAIR = ["score", "other_score", "difference", "prompt", "response", "other_response"];
const TITLES = { kl: "KL", other_kl: "KL", other_score: "score", other_response: "response", other_length: "length", other_finished: "finished", difference: "Δ score" };
const HEADINGS = { finished: "cut", other_finished: "cut", difference: "Δ" };
const OPERATORS = { number: [">=", "<=", "=", "!=", ">", "<"], flag: ["="], text: ["~", "=", "!="] };
const NAMES = { ">=": "≥", "<=": "≤", "=": "is", "!=": "is not", "~": "has", ">": ">", "<": "<" };

let page = { rows: [], columns: [], matching: 0 };
let pending = new AbortController();

/** Where the samples are: the chosen step or evaluation, or the newest step. */
export function place() {
  const { sample_steps: steps, evaluations } = heads[state.run];
  return state.at ?? (steps.length ? String(steps.at(-1)) : evaluations.at(-1)?.at);
}

function otherPlace() {
  const { sample_steps: steps, evaluations } = heads[state.beside];
  const here = place();
  if (state.other) return state.other;
  if (here?.startsWith("e")) return evaluations.find((one) => one.label === labelOf(here))?.at ?? evaluations.at(-1)?.at;
  return steps.length ? String(steps.reduce((best, one) => (Math.abs(one - here) < Math.abs(best - here) ? one : best))) : undefined;
}

const labelOf = (one) => heads[state.run].evaluations.find((result) => result.at === one)?.label;

export async function showSamples() {
  drawPlace();
  searchAgain();
  const here = place();
  if (here === undefined) {
    page = { rows: [], columns: [], matching: 0, total: 0, summary: {} };
    drawTable("No samples yet: a run of PPO writes them with each step (report.samples). Other trainings have none.");
    return closeSample(false);
  }
  pending.abort();
  pending = new AbortController();
  const asked = { run: state.run, at: here, search: state.search, where: state.where, sort: state.sort, descending: state.descending, offset: state.offset, limit: PAGE };
  if (state.beside) Object.assign(asked, { other: state.beside, other_at: otherPlace() });
  if (state.beside && asked.other_at === undefined) throw new Error(`${heads[state.beside].short} has no samples to lay beside these`);
  try {
    page = await ask(state.beside ? "pairs" : "samples", asked, pending.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    page = { rows: [], columns: page.columns, matching: 0, total: 0, summary: {} };
    drawTable(error.message);
    throw error;
  }
  drawFilter();
  const none = state.beside && !page.total ? "No prompt is in both. Runs with other seeds see their prompts in other steps: open a sample to find its prompt in both runs, or look at the held-out prompts." : "No sample matches.";
  drawTable(none);
  if (state.row !== undefined && page.total) await openSample(Number(state.row), here, state.beside ? { run: state.beside, at: asked.other_at, row: otherRow() } : null);
  else closeSample(false);
}

const otherRow = () => page.rows.find((one) => String(one.row) === String(state.row))?.other_row;

function drawPlace() {
  const { sample_steps: steps, evaluations } = heads[state.run];
  const here = place() ?? "";
  const index = steps.indexOf(Number(here));
  at("step").value = here.startsWith("e") ? "" : here;
  Object.assign(at("slider"), { max: Math.max(steps.length - 1, 0), disabled: steps.length < 2 });
  at("slider").value = index < 0 ? steps.length - 1 : index;
  at("slider").setAttribute("aria-valuetext", `step ${here}`);
  at("earlier").disabled = index <= 0;
  at("later").disabled = index < 0 || index >= steps.length - 1;
  at("follow").checked = state.at === undefined;
  at("held-out").hidden = !evaluations.length;
  at("evaluation").replaceChildren(element("option", { value: "" }, "–"), ...evaluations.map((one) => element("option", { value: one.at }, one.label)));
  at("evaluation").value = here.startsWith("e") ? here : "";
  at("other-step").hidden = !state.beside;
  if (state.beside) {
    const other = heads[state.beside];
    const options = [...other.sample_steps.map((one) => [String(one), `step ${one}`]), ...other.evaluations.map((one) => [one.at, one.label])];
    at("other-at").replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    at("other-at").value = otherPlace() ?? "";
  }
}

function drawFilter() {
  const names = page.columns.map((one) => one.name).filter((name) => !["row", "other_row", "step"].includes(name));
  const before = at("filter-column").value;
  at("filter-column").replaceChildren(...names.map((name) => element("option", { value: name }, title(name))));
  at("filter-column").value = names.includes(before) ? before : names.includes("score") ? "score" : names[0];
  drawOperators();
  for (const button of document.querySelectorAll(".toggle")) {
    const column = button.dataset.where.split("=")[0];
    button.hidden = !names.includes(column);
    button.setAttribute("aria-pressed", state.where.includes(button.dataset.where));
  }
  const quick = [...document.querySelectorAll(".toggle")].map((button) => button.dataset.where);
  at("chips").replaceChildren(...state.where.filter((one) => !quick.includes(one)).map((one) => {
    const [, name, operator, value] = one.match(/^([^<>=!~]+?)(>=|<=|!=|>|<|=|~)(.*)$/s) ?? [null, one, "", ""];
    const remove = () => show({ where: state.where.filter((other) => other !== one), offset: 0 });
    return element("button", { className: "chip", title: "Remove this filter", onclick: remove }, `${title(name)} ${NAMES[operator] ?? operator} ${value} ×`);
  }));
  if (at("search") !== document.activeElement) at("search").value = state.search ?? "";
  const open = shownColumns();
  at("columns").replaceChildren(...page.columns.filter((one) => !["row", "other_row"].includes(one.name)).map((one) => {
    const box = element("input", { type: "checkbox", checked: open.includes(one.name), onchange: () => chooseColumn(one.name, box.checked) });
    return element("label", { className: "check" }, box, ` ${title(one.name, true)}`);
  }));
}

function drawOperators() {
  const kind = page.columns.find((one) => one.name === at("filter-column").value)?.kind ?? "text";
  const before = at("filter-operator").value;
  at("filter-operator").replaceChildren(...OPERATORS[kind].map((one) => element("option", { value: one }, NAMES[one])));
  if (OPERATORS[kind].includes(before)) at("filter-operator").value = before;
  at("filter-value").placeholder = { number: "number", flag: "true/false", text: "text" }[kind];
}

const chosen = () => JSON.parse(localStorage.getItem("tetrarch-columns") ?? "{}");

function chooseColumn(name, shown) {
  localStorage.setItem("tetrarch-columns", JSON.stringify({ ...chosen(), [name]: shown }));
  drawTable();
}

function shownColumns() {
  const names = page.columns.map((one) => one.name);
  const own = chosen();
  const usual = state.beside ? PAIR.filter((name) => names.includes(name)) : names.filter((name) => !HIDDEN.includes(name));
  const order = (name) => (state.beside ? PAIR.indexOf(name) + (PAIR.includes(name) ? 0 : 100) : ["prompt", "response"].indexOf(name));
  return names.filter((name) => own[name] ?? usual.includes(name)).sort((one, other) => order(one) - order(other));
}

/** Of a pair: whether a column is that of one of the two runs, and of which. */
const ofOneRun = (name) => !["prompt", "prompt_id", "difference"].includes(name);
const runOf = (name) => heads[name.startsWith("other_") ? state.beside : state.run].short;

/** How a column is called; `whole`: with its run. */
const title = (name, whole = false) => (TITLES[name] ?? name) + (whole && state.beside && ofOneRun(name) ? `, ${runOf(name)}` : "");

function drawTable(nothing = "No sample matches.") {
  const kinds = Object.fromEntries(page.columns.map((one) => [one.name, one.kind]));
  const names = page.rows.length ? shownColumns().filter((name) => name in page.rows[0] && (name !== "dropped" || page.rows.some((row) => row.dropped))) : [];
  const whole = Object.fromEntries(names.map((name) => [name, page.rows.every((row) => row[name] === null || Number.isInteger(row[name]))]));
  const most = Math.max(...page.rows.flatMap((row) => ["score", "other_score", "difference"].map((name) => Math.abs(row[name] ?? 0))), 1e-9);
  const head = element("tr", {}, element("th", { scope: "col", className: "number soft" }, "#"), ...names.map((name) => {
    const sorted = state.sort === name;
    const mark = state.beside && ofOneRun(name) ? element("span", { className: `swatch c${name.startsWith("other_") ? 1 : 0}`, title: runOf(name) }) : null;
    const button = element("button", { title: `Sort by ${title(name, true)}`, onclick: () => sortBy(name) }, mark, HEADINGS[name] ?? title(name), sorted ? (state.descending ? " ↓" : " ↑") : "");
    return element("th", { scope: "col", className: `${kinds[name]} ${name.replace(/\W/g, "-")}`, "aria-sort": sorted ? (state.descending ? "descending" : "ascending") : "none" }, button);
  }));
  const rows = page.rows.map((row, place) => {
    const line = element("tr", { tabIndex: place === 0 ? 0 : -1, onclick: () => openRow(row.row) }, element("td", { className: "number soft" }, row.row), ...names.map((name) => cellOf(name, row, kinds[name], whole[name], most)));
    line.dataset.row = row.row;
    line.setAttribute("aria-selected", String(row.row) === String(state.row));
    return line;
  });
  at("table").tHead.replaceChildren(...(names.length ? [head] : []));
  at("table").tBodies[0].replaceChildren(...rows);
  at("table").classList.toggle("pairs", Boolean(state.beside));
  Object.assign(at("nothing"), { textContent: nothing, hidden: rows.length > 0 });
  const last = state.offset + page.rows.length;
  at("where").textContent = page.matching ? `${number(state.offset + 1)}–${number(last)} of ${number(page.matching)}` : "";
  at("back").disabled = state.offset === 0;
  at("on").disabled = last >= page.matching;
  drawSummary();
}

function cellOf(name, row, kind, whole, most) {
  const value = row[name];
  if (name === "finished" || name === "other_finished") return element("td", { className: "flag" }, value ? "" : element("span", { className: "cut", title: "the length limit has cut it" }, "cut"));
  if (kind === "number" || (kind === undefined && typeof value === "number")) {
    const tinted = ["score", "other_score", "difference"].includes(name) && typeof value === "number";
    const found = element("td", { className: `number${tinted ? ` tint ${value < 0 ? "minus" : "plus"}` : ""}` }, cell(name, value, whole));
    if (tinted) found.style.setProperty("--amount", `${Math.round((30 * Math.abs(value)) / most)}%`);
    return found;
  }
  return element("td", { className: `text ${name}` }, element("div", { className: "line", dir: "auto" }, kind === "flag" ? cell(name, value) : oneLine(value)));
}

function drawSummary() {
  const told = page.summary ?? {};
  const of = (name, label, decimals) => told[name] && element("span", {}, element("span", { className: "soft" }, `${label} `), number(told[name].mean, decimals), element("span", { className: "soft" }, ` (${number(told[name].least, decimals)} to ${number(told[name].most, decimals)})`));
  const count = page.total === undefined ? "" : page.matching === page.total ? `${number(page.total)} ${state.beside ? "pair" : "sample"}${page.total === 1 ? "" : "s"}` : `${number(page.matching)} of ${number(page.total)}`;
  at("summary").replaceChildren(...[
    element("strong", {}, count), of("score", state.beside ? `score, ${heads[state.run].short},` : "score", 3), state.beside && of("other_score", `score, ${heads[state.beside].short},`, 3),
    state.beside && of("difference", "Δ", 3), of("kl", "KL", 2), of("length", "length", 1),
    told.truncated && element("span", {}, `${number(100 * told.truncated.mean, 0)} % `, element("span", { className: "soft" }, "truncated")),
    page.total && heads[state.run].whole_steps === 0 ? element("span", { className: "soft" }, "some of each step: this run keeps no files of samples (report.samples)") : null,
  ].filter(Boolean));
}

function sortBy(name) {
  const again = state.sort === name;
  if (again && !state.descending) return show({ sort: undefined, descending: false, offset: 0 });
  show({ sort: name, descending: !again, offset: 0 });
}

const openRow = (row) => show({ row: String(row), ...(state.at === undefined && { at: place() }) });

/** The sample `by` rows further is opened; at an end of the page, that of the next page. */
export async function openNext(by) {
  const index = page.rows.findIndex((row) => String(row.row) === String(state.row));
  const next = index < 0 ? (by > 0 ? 0 : page.rows.length - 1) : index + by;
  if (page.rows[next]) await openRow(page.rows[next].row);
  else {
    const offset = state.offset + by * PAGE;
    if (offset < 0 || offset >= page.matching) return;
    await show({ offset, row: undefined });
    const row = page.rows.at(by > 0 ? 0 : -1)?.row;
    if (row !== undefined) await openRow(row);
  }
  at("table").querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
}

/** Another step: `by` steps later. */
export function stepBy(by) {
  const { sample_steps: steps } = heads[state.run];
  const index = steps.indexOf(Number(place()));
  const next = steps[index < 0 ? steps.length - 1 : index + by];
  if (next !== undefined) goTo(String(next));
}

const goTo = (where) => show({ at: where, row: undefined, offset: 0, other: undefined });

export function wireSamples() {
  wireEverywhere();
  at("step").addEventListener("change", (event) => {
    const { sample_steps: steps } = heads[state.run];
    const wanted = Number(event.target.value);
    if (steps.includes(wanted)) return goTo(String(wanted));
    attempt(async () => {
      throw new Error(steps.length ? `step ${wanted} has no samples; there are those of ${steps.length} steps from ${steps[0]} to ${steps.at(-1)}` : "this run has no samples of training steps");
    });
  });
  at("slider").addEventListener("input", calmly((event) => goTo(String(heads[state.run].sample_steps[Number(event.target.value)])), 60));
  at("earlier").addEventListener("click", () => stepBy(-1));
  at("later").addEventListener("click", () => stepBy(1));
  at("follow").addEventListener("change", (event) => (event.target.checked ? goTo(undefined) : show({ at: place() })));
  at("evaluation").addEventListener("change", (event) => goTo(event.target.value || undefined));
  at("other-at").addEventListener("change", (event) => show({ other: event.target.value, row: undefined, offset: 0 }));
  at("search").addEventListener("input", calmly(() => show({ search: at("search").value || undefined, offset: 0 })));
  at("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") { at("search").blur(); openNext(1); }
  });
  at("filter-column").addEventListener("change", drawOperators);
  at("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    const one = `${at("filter-column").value}${at("filter-operator").value}${at("filter-value").value}`;
    at("filter-value").value = "";
    if (!state.where.includes(one)) show({ where: [...state.where, one], offset: 0 });
  });
  for (const button of document.querySelectorAll(".toggle")) {
    const one = button.dataset.where;
    button.addEventListener("click", () => show({ where: state.where.includes(one) ? state.where.filter((other) => other !== one) : [...state.where, one], offset: 0 }));
  }
  at("back").addEventListener("click", () => show({ offset: Math.max(state.offset - PAGE, 0) }));
  at("on").addEventListener("click", () => show({ offset: state.offset + PAGE }));
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
}
