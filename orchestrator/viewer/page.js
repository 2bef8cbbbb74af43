// The page: which runs and what of them is shown (all of it stands in the address), the head, keys, and news.
import { ask, at, element, number } from "./common.js";
import { showCurves } from "./curves.js";
import { openNext, showSamples, stepBy, wireSamples } from "./samples.js";
import { closeSample, colourNext, moveToken, sampleIsOpen } from "./sample.js";

const NEWS_MS = 2000;
const RUNS_EVERY = 5; // looks for news until the list of runs is read again
const LISTS = ["metric", "where"];
const PLAIN = ["run", "beside", "tab", "at", "other", "search", "sort", "row", "colour"];

/** What is shown. `at` undefined: the newest step. */
export const state = { tab: "", metric: [], where: [], descending: false, offset: 0 };
/** What the server told of the runs: name → the head of the run. */
export const heads = {};
let lines = [];
let looks = 0;

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of LISTS) state[name] = query.getAll(name);
  for (const name of PLAIN) state[name] = query.get(name) ?? undefined;
  state.descending = query.get("descending") === "true";
  state.offset = Number(query.get("offset") ?? 0) || 0;
}

/** Change what is shown, and show it. */
export async function show(change = {}, { push = false } = {}) {
  const next = { ...state, ...change };
  if ([next.run, next.beside].some((name) => name && !heads[name])) {
    let known = false;
    await attempt(async () => {
      await readHeads(next);
      known = true;
    });
    if (!known) return;
  }
  Object.assign(state, change);
  const query = new URLSearchParams();
  for (const name of PLAIN) if (state[name] !== undefined && state[name] !== "") query.set(name, state[name]);
  for (const name of LISTS) for (const one of state[name]) query.append(name, one);
  if (state.descending) query.set("descending", "true");
  if (state.offset) query.set("offset", state.offset);
  history[push ? "pushState" : "replaceState"](null, "", `?${query}`);
  await attempt(draw);
}

/** Do `work`; its error is told on the page, until work `of` the same kind succeeds. */
export async function attempt(work, of = "show") {
  try {
    await work();
    if (at("problem").dataset.of === of) tell("", of);
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, of);
  }
}

function tell(text, of) {
  const place = at("problem");
  place.textContent = text;
  place.dataset.of = of;
  place.hidden = !text;
}

async function readHeads({ run, beside } = state) {
  for (const name of [run, beside]) if (name) heads[name] = await ask("run", { run: name });
}

async function draw() {
  drawHead();
  const tab = state.tab;
  for (const name of ["curves", "samples"]) {
    at(name).hidden = name !== tab;
    at(`tab-${name}`).setAttribute("aria-selected", name === tab);
    at(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
  }
  document.body.dataset.tab = tab;
  await (tab === "curves" ? showCurves() : showSamples());
}

function option(line) {
  const step = line.steps ? `${line.step}/${line.steps}` : line.step;
  return element("option", { value: line.run, selected: false }, `${line.run} · ${line.state} · ${step}`);
}

function drawHead() {
  const { run, beside } = state;
  at("run").replaceChildren(...lines.map(option));
  at("run").value = run;
  at("beside").replaceChildren(element("option", { value: "" }, "no other run"), ...lines.filter((line) => line.run !== run).map(option));
  at("beside").value = beside ?? "";
  at("beside").closest("label").hidden = lines.length < 2;
  document.title = `${heads[run].short} · Tetrarch viewer`;
  at("state").replaceChildren(...[run, beside].filter(Boolean).map((name, place) => stateOf(heads[name], place)));
  const problems = [run, beside].filter(Boolean).flatMap((name) => [heads[name].problem, ...heads[name].problems]).filter(Boolean);
  if (problems.length || at("problem").dataset.of === "files") tell(problems.join("\n"), "files");
}

function stateOf(head, place) {
  const kind = { done: "done", failed: "failed", damaged: "failed", running: "running" }[head.state] ?? "unfinished";
  const step = head.steps ? `step ${head.step} of ${head.steps}` : `step ${head.step}`;
  const facts = head.numbers.map(([name, value]) => element("span", {}, element("span", { className: "soft" }, `${name} `), value.replace(/^-/, "\u2212")));
  if (head.alerts.length) facts.push(element("details", { className: "menu" }, element("summary", { className: "warned" }, `${number(head.alerts.length)} alert${head.alerts.length > 1 ? "s" : ""}`), element("div", { className: "sheet alerts" }, ...head.alerts.map((text) => element("p", {}, text)))));
  if (head.set_aside.length) {
    const text = `made after the checkpoint from which the run went on; to see it: tetrarch view ${head.set_aside.join(" ")}`;
    facts.push(element("span", { className: "soft", title: text }, `${head.set_aside.length} set aside`));
  }
  const line = element(
    "div", { className: "run-state" },
    element("span", { className: `swatch c${place}`, hidden: !state.beside }),
    element("strong", {}, head.short), element("span", { className: `pill ${kind}` }, head.state),
    element("span", { className: "soft" }, [head.kind, step].filter(Boolean).join(" · ")), ...facts,
  );
  if (!head.error && !head.ended) return line;
  return element("div", {}, line, element("details", { className: "trouble" }, element("summary", {}, head.error ? "what ended it" : "ended early"), element("pre", {}, head.error || head.ended)));
}

/** News of the runs: what has changed since is drawn again. */
async function lookForNews() {
  if (!document.hidden && state.run) {
    await attempt(async () => {
      if (++looks % RUNS_EVERY === 0) {
        const before = JSON.stringify(lines);
        lines = (await ask("runs")).runs;
        if (JSON.stringify(lines) !== before && !document.activeElement.matches("select")) drawHead();
      }
      const before = [state.run, state.beside].map((name) => heads[name]?.version + heads[name]?.state);
      await readHeads();
      const after = [state.run, state.beside].map((name) => heads[name]?.version + heads[name]?.state);
      if (before.join() !== after.join()) {
        lines = (await ask("runs")).runs;
        await draw();
      }
    }, "news");
  }
  setTimeout(lookForNews, NEWS_MS);
}

function wire() {
  at("run").addEventListener("change", (event) => show({ run: event.target.value, beside: state.beside === event.target.value ? undefined : state.beside, at: undefined, row: undefined, offset: 0 }));
  at("beside").addEventListener("change", (event) => show({ beside: event.target.value || undefined, other: undefined, row: undefined, offset: 0, sort: undefined, where: [] }));
  for (const name of ["curves", "samples"]) at(`tab-${name}`).addEventListener("click", () => show({ tab: name }, { push: true }));
  at("help").addEventListener("click", () => at("keys").showModal());
  addEventListener("popstate", () => { readAddress(); show(); });
  document.addEventListener("keydown", key);
}

/** Do `work` among the samples: at once if they are shown, so that no key that follows is lost. */
const inSamples = (work) => (state.tab === "samples" ? work() : show({ tab: "samples" }).then(work));

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("keys").open) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "Escape") {
    if (typing && event.target.type !== "checkbox") event.target.blur();
    else if (sampleIsOpen()) closeSample();
    return;
  }
  if (typing && event.target.type !== "checkbox") return;
  if (event.key === "Enter" && event.target.matches("#table tbody tr")) return void event.target.click();
  const samples = state.tab === "samples";
  const done = {
    1: () => show({ tab: "curves" }, { push: true }),
    2: () => show({ tab: "samples" }, { push: true }),
    "?": () => at("keys").showModal(),
    "/": () => inSamples(() => at("search").focus()),
    g: () => inSamples(() => at("step").select()),
    ...(samples && {
      e: () => at("everywhere").querySelector("summary").click(),
      "[": () => stepBy(-1), "]": () => stepBy(1), c: colourNext,
      j: () => openNext(1), k: () => openNext(-1), ArrowDown: () => openNext(1), ArrowUp: () => openNext(-1),
      ...(sampleIsOpen() && { ArrowLeft: () => moveToken(-1), ArrowRight: () => moveToken(1) }),
    }),
  }[event.key];
  if (!done || (event.target.closest("[role=tablist], summary") && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  done();
}

async function begin() {
  readAddress();
  wire();
  wireSamples();
  await attempt(async () => {
    const told = await ask("runs");
    lines = told.runs;
    const running = lines.find((line) => line.state === "running") ?? lines[0];
    const [first, second] = told.first.length ? told.first : [running.run];
    const known = new Set(lines.map((line) => line.run));
    if (!known.has(state.run)) Object.assign(state, { run: first, beside: second });
    if (!known.has(state.beside)) state.beside = undefined;
    state.tab ??= "curves";
    await show();
  }, "begin");
  setTimeout(lookForNews, NEWS_MS);
}

begin();
