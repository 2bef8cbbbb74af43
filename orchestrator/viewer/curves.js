// Curves: the report's charts of one run, or those of two over each other, and of any metric that is picked.
import { ask, at, element } from "./common.js";
import { heads, show, state } from "./page.js";

let drawing; // Plotly, once it is asked for
let asked = 0;

/** Plotly and the report's way to draw with it: 5 MB that are read when the first chart is drawn. */
function plotly() {
  drawing ??= ["plotly.js", "report.js"].reduce((before, name) => before.then(() => new Promise((done, failed) => {
    const script = element("script", { src: `/static/${name}`, onload: done, onerror: () => failed(new Error(`${name} was not loaded`)) });
    document.head.append(script);
  })), Promise.resolve());
  return drawing;
}

export async function showCurves() {
  const mine = ++asked;
  const runs = [state.run, state.beside].filter(Boolean).filter((name) => !heads[name].problem);
  drawPicked();
  if (!runs.length) return at("charts").replaceChildren();
  const [cards] = await Promise.all([ask("charts", { run: runs, metric: state.metric }), plotly()]);
  if (mine !== asked) return;
  const places = new Map([...at("charts").children].map((place) => [place.dataset.key, place]));
  const found = cards.map((card, number) => {
    const key = `${runs.join()} ${number < state.metric.length ? "picked " : ""}${card.title}`;
    const place = places.get(key) ?? frame(key, number < state.metric.length ? card.title : "");
    fill(place, card);
    return place;
  });
  at("charts").replaceChildren(...found);
  if (!found.length) at("charts").append(element("p", { className: "nothing" }, "No step has ended yet; the charts appear with the first one."));
  filterCharts();
  found.forEach((place, number) => draw(place, cards[number]));
}

function frame(key, picked) {
  const remove = picked && element("button", { className: "quiet", title: "Remove this chart", onclick: () => show({ metric: state.metric.filter((one) => one !== picked) }) }, "×");
  const place = element("figure", { className: "card" },
    element("figcaption", {}, element("h3"), element("span", { className: "latest" }), remove || null),
    element("div", { className: "plot", role: "img" }), element("p", { className: "about" }));
  place.dataset.key = key;
  return place;
}

function fill(place, card) {
  place.querySelector("h3").textContent = card.title;
  place.querySelector(".latest").textContent = card.latest;
  Object.assign(place.querySelector(".about"), { textContent: card.about, title: card.about });
  const plot = place.querySelector(".plot");
  plot.setAttribute("aria-label", `${card.title}: ${card.summary}`);
  plot.dataset.title = card.title;
  place.hidden = false;
}

function draw(place, card) {
  const plot = place.querySelector(".plot");
  if (!card.figure) return void (plot.textContent = "No finite value was recorded.");
  plot.figure = card.figure;
  window.drawFigure(plot, card.figure);
  if (plot.wired) return;
  plot.wired = true;
  plot.on("plotly_click", (event) => {
    const step = event.points[0]?.x;
    if (Number.isInteger(step) && heads[state.run].sample_steps.length && /over/.test(card.title) === false) show({ tab: "samples", at: String(nearest(step)), row: undefined, offset: 0 }, { push: true });
  });
}

const nearest = (step) => heads[state.run].sample_steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));

function drawPicked() {
  const known = new Map([state.run, state.beside].filter(Boolean).flatMap((name) => heads[name].metrics ?? []).map((one) => [one.key, one.about]));
  at("metrics").replaceChildren(...[...known].map(([key, about]) => element("option", { value: key }, about)));
  at("metric").onchange = (event) => {
    const key = event.target.value.trim();
    event.target.value = "";
    if (known.has(key) && !state.metric.includes(key)) show({ metric: [key, ...state.metric] });
  };
  at("metric-search").oninput = filterCharts;
}

function filterCharts() {
  const wanted = at("metric-search").value.trim().toLowerCase();
  for (const place of at("charts").querySelectorAll("figure")) {
    const text = place.querySelector("h3").textContent + place.querySelector(".about").textContent;
    place.hidden = !text.toLowerCase().includes(wanted);
  }
  window.dispatchEvent(new Event("resize")); // charts that were hidden learn their width
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of document.querySelectorAll(".plot")) if (plot.figure) window.drawFigure(plot, plot.figure);
});
