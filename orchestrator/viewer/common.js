// Helpers of the viewer's modules: elements whose texts are only texts, numbers, and questions to the server.

/** An element. `options`: properties, and attributes under names with a dash; children are elements or texts. */
export function element(tag, options = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role") found.setAttribute(name, value);
    else found[name] = value;
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

export const at = (id) => document.getElementById(id);

const MINUS = "\u2212";
const DECIMALS = { score: 3, other_score: 3, difference: 3, kl: 2, other_kl: 2, gold: 3 };

/** A number as text with a real minus sign; `decimals` undefined: as many as its size asks for. */
export function number(value, decimals) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  const few = size >= 1000 || Number.isInteger(value) ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3;
  const tiny = decimals === undefined && size > 0 && size < 5e-4;
  const text = tiny ? size.toExponential(1) : size.toLocaleString("en", { minimumFractionDigits: decimals ?? few, maximumFractionDigits: decimals ?? few });
  return value < 0 && /[1-9]/.test(text) ? MINUS + text : text;
}

/** A value of a column, with as many decimals in every row. */
export function cell(name, value, whole = false) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" ? number(value, DECIMALS[name] ?? (whole ? 0 : 3)) : value;
}

/** A text in one line. */
export const oneLine = (text) => (text ?? "").replace(/\s*\n\s*/g, " ⏎ ").trim();

/** Within so many milliseconds the server must answer. */
const PATIENCE_MS = 60000;

/** What the server answers; an Error with its message if it refuses. */
export async function ask(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined && one !== "") query.append(name, one);
  }
  const late = AbortSignal.timeout(PATIENCE_MS);
  let answer, told;
  try {
    answer = await fetch(`/api/${path}?${query}`, { signal: signal ? AbortSignal.any([signal, late]) : late });
    told = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof SyntaxError) throw new Error(`the viewer failed (${answer.status}); its terminal says why`);
    throw new Error("the viewer does not answer; is `tetrarch view` still running, and does the disk of the runs answer?");
  }
  if (!answer.ok) throw new Error(told.error?.message ?? told.detail?.[0]?.msg ?? told.detail ?? answer.statusText);
  return told;
}

/** `work` runs once calls have paused for a moment. */
export function calmly(work, milliseconds = 180) {
  let timer;
  return (...said) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...said), milliseconds);
  };
}
