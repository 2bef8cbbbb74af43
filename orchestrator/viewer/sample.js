// One sample: its conversation, its tokens coloured by a number, and the same prompt in other steps and runs.
import { ask, at, cell, element, number, oneLine } from "./common.js";
import { attempt, heads, show, state } from "./page.js";

const STRONGEST = 72; // per cent of the colour at the end of the scale
let opened = null; // what is open, as a text
let tokens = []; // the tokens that can be pointed at: { place, side, index }
let chosen = -1;
let sides = [];

export const sampleIsOpen = () => !at("sample").hidden;

export function closeSample(told = true) {
  at("sample").hidden = true;
  at("split").classList.remove("open");
  [opened, tokens, sides, chosen] = [null, [], [], -1];
  if (told) {
    const row = at("table").querySelector("[aria-selected=true]");
    show({ row: undefined }).then(() => row?.focus());
  }
}

/** Open a sample. `other`: the sample of another run that stands beside it, `{run, at, row}`; null: none. */
export async function openSample(row, where, other) {
  const wanted = JSON.stringify([state.run, where, row, other]);
  if (wanted === opened) return;
  const places = [{ run: state.run, at: where, row }, ...(other && other.row !== undefined ? [other] : [])];
  const found = await Promise.all(places.map((one) => ask("sample", one)));
  sides = places.map((one, number) => ({ ...one, ...found[number] }));
  opened = wanted;
  draw();
  await attempt(drawSamePrompt, "same prompt");
}

const placeName = (one) => (one.at.startsWith("e") ? `held out, ${heads[one.run].evaluations.find((result) => result.at === one.at)?.label ?? ""}` : `step ${one.at}`);

function draw() {
  [tokens, chosen] = [[], -1];
  const numbers = sides.flatMap((side) => side.numbers);
  const usable = [...new Set(numbers.filter((one) => one.values?.length).map((one) => one.key))];
  const colour = usable.includes(state.colour) ? state.colour : usable[0];
  const panel = at("sample");
  const heading = `${placeName(sides[0])} · sample ${sides[0].row}`;
  panel.replaceChildren(
    element("div", { className: "sample-head" }, element("h2", {}, heading), colouring(colour, usable),
      element("button", { className: "quiet", title: "Close (Esc)", "aria-label": "Close", onclick: () => closeSample() }, "×")),
    legend(colour, usable),
    ...sides.map((side, place) => element("article", { className: "side" }, sides.length > 1 ? element("h3", {}, element("span", { className: `swatch c${place}` }), `${heads[side.run].short} · ${placeName(side)}`) : null, facts(side), conversation(side, place, colour))),
    element("div", { className: "same", id: "same" }),
    ...sides.slice(0, 1).map((side) => (side.messages && side.prompt ? element("details", {}, element("summary", {}, "the prompt as the model reads it"), element("pre", {}, side.prompt)) : null)).filter(Boolean),
    element("div", { className: "readout", id: "readout", "aria-live": "polite" }, hintOf(usable)),
  );
  const before = panel.hidden;
  panel.hidden = false;
  if (before) panel.scrollTop = 0;
  at("split").classList.add("open");
}

const hintOf = (usable) => (usable.length ? "Point at a token, or go through them with ← and →." : "");

function colouring(colour, usable) {
  const choices = sides[0].numbers.map((one) => element("option", { value: one.key, disabled: !usable.includes(one.key), title: one.missing ?? one.about }, one.label + (usable.includes(one.key) ? "" : " (not recorded)")));
  const select = element("select", { id: "colour", "aria-label": "Colour tokens by", onchange: () => { show({ colour: select.value }); draw(); attempt(drawSamePrompt, "same prompt"); } }, ...choices);
  if (colour) select.value = colour;
  else select.prepend(element("option", { value: "", selected: true }, "nothing recorded"));
  return element("label", { className: "pick" }, element("span", { className: "soft" }, "colour by"), select);
}

function legend(colour, usable) {
  const missing = sides[0].numbers.filter((one) => one.missing);
  const why = missing.length ? element("details", { className: "missing" }, element("summary", {}, usable.length ? `${missing.length} not recorded` : "no numbers of tokens were recorded"), element("ul", {}, ...missing.map((one) => element("li", {}, element("strong", {}, one.label), `: ${one.missing}`)))) : null;
  const one = numberOf(sides[0], colour) ?? sides.map((side) => numberOf(side, colour)).find(Boolean);
  if (!one) return element("div", { className: "legend" }, why);
  const scale = scaleOf(colour);
  const ends = one.sign === "both" ? [number(-scale), "0", number(scale)] : ["0", number(scale)];
  return element("div", { className: "legend" }, element("span", { className: "ends" }, ends[0], element("span", { className: `ramp ${one.sign}` }), ends.at(-1), one.unit ? element("span", { className: "soft" }, ` ${one.unit}`) : null),
    element("span", { className: "soft about", title: one.about }, one.about), why);
}

const numberOf = (side, key) => side.numbers.find((one) => one.key === key && one.values);

/** The end of the colours' scale: nearly the largest number, so that one outlier does not pale the others. */
function scaleOf(key) {
  const sizes = sides.flatMap((side) => numberOf(side, key)?.values ?? []).filter((value) => value !== null).map(Math.abs).sort((one, other) => one - other);
  return sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 1 : 1;
}

const FIRST = ["score", "gold", "kl", "length", "finished"];

function facts(side) {
  const names = Object.keys(side.columns).filter((name) => name !== "step");
  const order = [...FIRST.filter((name) => names.includes(name)), ...names.filter((name) => !FIRST.includes(name))];
  const labels = { kl: "KL", prompt_id: "prompt", response_id: "response", prompt_length: "prompt length" };
  const shown = order.filter((name) => side.columns[name] !== null).map((name) => {
    const value = side.columns[name];
    return element("div", { className: FIRST.includes(name) ? "main" : "" }, element("dt", {}, labels[name] ?? name.replaceAll("_", " ")), element("dd", {}, cell(name, value, Number.isInteger(value))));
  });
  return element("dl", { className: "facts" }, ...shown);
}

function conversation(side, place, colour) {
  const messages = side.messages;
  const count = side.tokens.count;
  const found = [];
  const asked = messages ? messages.slice(0, firstAnswer(side)) : [];
  if (place === 0) { // the prompt of the other run's sample is the same
    if (messages) found.push(...asked.map((one) => bubble(one.role, words(one.content))));
    else if (side.prompt !== null) found.push(bubble("prompt", words(side.prompt)));
  }
  if (count) found.push(...answers(side, place, colour, asked.length));
  else if (messages) found.push(...messages.slice(asked.length).map((one) => bubble(one.role, words(one.content), one.role === "assistant")));
  else found.push(bubble("response", words(side.response), true));
  if (side.prompt === null && side.response === null && !count) found.push(element("p", { className: "soft" }, "The run keeps no texts (report.samples.texts)."));
  const cut = side.columns.finished === false ? element("p", { className: "soft" }, element("span", { className: "cut" }, "cut"), " by the length limit") : null;
  return element("div", { className: "talk" }, ...found, cut);
}

/** What followed the prompt: the policy's turns by their tokens, the others' as messages, without the template's marks. */
function answers(side, place, colour, from) {
  const others = side.messages?.slice(from) ?? [];
  const said = () => {
    const found = [];
    while (others.length && others[0].role !== "assistant") found.push(bubble(others[0].role, words(others.shift().content)));
    return found;
  };
  const found = turns(side).flatMap(([made, begin, end]) => {
    const tokens = () => tokensOf(side, place, colour, begin, end);
    if (made) {
      others.shift();
      return [bubble("response", tokens(), true)];
    }
    const told = said();
    return told.length ? told : [bubble("environment", tokens())];
  });
  return [...found, ...said()];
}

/** Which message the policy's first answer is: the last of a chat, the first after the task of an environment. */
function firstAnswer(side) {
  const last = side.messages.length - 1;
  if (side.columns.turns === undefined) return side.messages[last]?.role === "assistant" ? last : last + 1;
  const first = side.messages.findIndex((one) => one.role === "assistant");
  return first < 0 ? last + 1 : first;
}

/** Neighbouring tokens that the policy generated, or that an environment said: [generated, from, to]. */
function turns(side) {
  const generated = side.generated ?? Array(side.tokens.count).fill(true);
  const found = [];
  generated.forEach((made, index) => {
    if (found.at(-1)?.[0] === made) found.at(-1)[2] = index + 1;
    else found.push([made, index, index + 1]);
  });
  return found;
}

const bubble = (who, what, ours = false) => element("div", { className: `said${ours ? " ours" : ""}` }, element("div", { className: "who" }, who), what);

const words = (text) => element("div", { className: "words", dir: "auto" }, text || element("span", { className: "soft" }, "(empty)"));

function tokensOf(side, place, colour, from, to) {
  const one = numberOf(side, colour);
  const scale = scaleOf(colour);
  const box = element("div", { className: "words tokens", dir: "auto" });
  if (!side.tokens.ids) box.append(element("p", { className: "soft" }, side.response ?? ""), element("p", { className: "soft" }, "Tokens by their place: report.samples.token_columns keeps no token_ids."));
  else if (!side.tokens.texts) box.append(element("p", { className: "soft" }, side.response ?? ""), element("p", { className: "soft" }, "The run's tokenizer.json is not on this machine: ids stand in place of texts."));
  for (let index = from; index < to; index++) {
    const text = side.tokens.texts?.[index] ?? `${side.tokens.ids?.[index] ?? index + 1}`;
    const value = one?.values[index];
    const plain = side.tokens.texts !== null && side.tokens.texts !== undefined;
    const shown = plain ? text.replaceAll("\n", "⏎\n") : text;
    const token = element("span", { className: `token${plain ? "" : " boxed"}${side.tokens.special?.[index] ? " special" : ""}` }, shown || "\u200b");
    if (typeof value === "number") {
      token.classList.add(one.sign === "positive" || value >= 0 ? "plus" : "minus");
      token.style.setProperty("--amount", `${Math.round(STRONGEST * Math.min(Math.abs(value) / scale, 1))}%`);
    }
    const at = tokens.push({ token, place, index }) - 1;
    token.addEventListener("pointerenter", () => point(at));
    token.addEventListener("click", () => point(at));
    box.append(token);
  }
  return box;
}

function point(number_) {
  tokens[chosen]?.token.classList.remove("here");
  chosen = number_;
  const { token, place, index } = tokens[chosen];
  token.classList.add("here");
  const side = sides[place];
  const text = side.tokens.texts?.[index];
  const parts = side.numbers.filter((one) => one.values).map((one) => element("span", {}, element("span", { className: "soft" }, `${one.label} `), element("b", {}, one.values[index] === null ? "–" : number(one.values[index], 3))));
  at("readout").replaceChildren(
    element("span", { className: "which" }, text === undefined ? "" : element("code", {}, JSON.stringify(text)), element("span", { className: "soft" }, ` ${index + 1}/${side.tokens.count}${side.tokens.ids ? ` · id ${side.tokens.ids[index]}` : ""}${side.generated?.[index] === false ? " · not the policy's" : ""}`)),
    ...parts,
  );
}

/** With the keyboard: the token `by` further. */
export function moveToken(by) {
  if (!tokens.length) return;
  point(chosen < 0 ? (by > 0 ? 0 : tokens.length - 1) : Math.min(Math.max(chosen + by, 0), tokens.length - 1));
  tokens[chosen].token.scrollIntoView({ block: "nearest" });
}

export function colourNext() {
  const select = at("colour");
  if (!select) return;
  const usable = [...select.options].filter((one) => !one.disabled && one.value);
  if (!usable.length) return;
  const next = usable[(usable.findIndex((one) => one.value === select.value) + 1) % usable.length];
  const kept = chosen;
  show({ colour: next.value });
  draw();
  if (kept >= 0) point(kept);
  attempt(drawSamePrompt, "same prompt");
}

async function drawSamePrompt() {
  const side = sides[0];
  const mine = opened;
  const found = await ask("same-prompt", { run: side.run, at: side.at, row: side.row, other: [state.beside].filter(Boolean) });
  if (mine !== opened || !at("same")) return;
  const here = (one) => one.run === side.run && one.at === side.at && one.row === side.row;
  const several = new Set(found.map((one) => one.run)).size > 1;
  const rows = found.map((one) => element("tr", {},
    element("td", {}, element("button", { className: "link", disabled: here(one), onclick: () => go(one) }, one.label)),
    several ? element("td", {}, heads[one.run]?.short ?? one.run) : null,
    ...["score", "kl"].map((name) => element("td", { className: "number" }, cell(name, one[name]))),
    element("td", { className: "text" }, element("div", { className: "line", dir: "auto" }, oneLine(one.response)))));
  const head = element("tr", {}, ...["where", several ? "run" : null, "score", "KL", "response"].filter(Boolean).map((text) => element("th", { scope: "col", className: ["score", "KL"].includes(text) ? "number" : "" }, text)));
  at("same").replaceChildren(element("h3", {}, `The same prompt (${found.length})`), rows.length > 1 ? element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)) : element("p", { className: "soft" }, "only here so far"));
}

function go(one) {
  const change = { at: one.at, row: String(one.row), search: undefined, where: [], offset: 0 };
  if (one.run === state.beside && one.run !== state.run) Object.assign(change, { run: one.run, beside: state.run });
  show({ ...change, other: undefined }, { push: true });
}
