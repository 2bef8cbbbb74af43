// The search in all steps of a run: the server looks through some steps at a time, the newest first.
import { ask, at, calmly, cell, element, number, oneLine } from "./common.js";
import { attempt, heads, show, state } from "./page.js";

let asked = 0;
let searched = ""; // what was looked for last, as a text

const query = () => ({ run: state.run, search: state.search, where: state.where, sort: state.sort, descending: state.descending });

/** Looks again if the list is open and something else is asked for. */
export const searchAgain = calmly(() => at("everywhere").open && JSON.stringify(query()) !== searched && search());

export function wireEverywhere() {
  at("everywhere").addEventListener("toggle", () => at("everywhere").open && search());
}

function search() {
  searched = JSON.stringify(query());
  at("found").replaceChildren();
  return attempt(() => goOn(undefined, 0), "search");
}

/** Look through the steps before `before`; `looked` were looked through already. */
async function goOn(before, looked) {
  const mine = ++asked;
  const whole = heads[state.run].sample_steps.length;
  if (!state.search && !state.where.length) {
    const hint = `Say what to search or to filter for: it is looked for in all ${number(whole)} steps of ${heads[state.run].short}.`;
    return void at("found").replaceChildren(element("p", { className: "further soft" }, hint));
  }
  const told = await ask("search", { ...query(), before });
  if (mine !== asked) return;
  at("found").querySelector(".further")?.remove();
  at("found").append(...told.steps.map(stepOf), ...told.problems.map((problem) => element("p", { className: "unanswered soft" }, problem)));
  at("found").append(element("p", { className: "further soft" }, ...further(told, looked + told.looked, whole)));
}

function further(told, seen, whole) {
  const none = at("found").querySelector("table") ? "" : "Nothing found. ";
  const parts = [`${none}${number(seen)} of ${number(whole)} steps looked through. `];
  if (told.before === null) return parts;
  return [...parts, element("button", { onclick: () => attempt(() => goOn(told.before, seen), "search") }, `go on before step ${told.before}`)];
}

function stepOf(one) {
  const rows = one.rows.map((row) => element("tr", {},
    element("td", {}, element("button", { className: "link", onclick: () => open(one.step, row.row) }, `sample ${row.row}`)),
    ...["score", "kl"].map((name) => element("td", { className: "number" }, cell(name, row[name]))),
    element("td", { className: "text" }, element("div", { className: "line", dir: "auto" }, oneLine(row.response)))));
  const heading = element("button", { className: "link", onclick: () => open(one.step) }, `step ${one.step}`);
  return element("div", {}, element("h3", {}, heading, element("span", { className: "soft" }, ` ${number(one.matching)} of ${number(one.total)}`)), element("table", {}, element("tbody", {}, ...rows)));
}

function open(step, row) {
  at("everywhere").open = false;
  show({ at: String(step), row: row === undefined ? undefined : String(row), other: undefined, offset: 0 }, { push: true });
}
