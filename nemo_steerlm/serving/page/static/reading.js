// How a text reads, as elements: a line of chips with what was asked for, and cards with the probability of every value.

import { element } from "./dom.js";

// Values shown of a language: there are dozens, nearly all of them with nothing.
const MOST_LANGUAGES = 5;
const MOST = 12;

/** One chip an attribute: what was asked for and, where it was read, what it reads as. */
export function chips(asked, turn) {
  const read = new Map(turn ? Object.entries(turn.attributes).map(([name, found]) => [name, found.value]) : []);
  if (turn?.lang) read.set("lang", turn.lang.value);
  const list = element("ul", {});
  for (const name of new Set([...Object.keys(asked), ...read.keys()])) {
    const chip = element("li", { "data-attribute": name }, `${name} `);
    if (name in asked) chip.append(element("b", {}, String(asked[name])));
    if (read.has(name)) {
      const arrow = element("span", { "aria-hidden": "true" }, "→ ");
      const value = element("span", { className: read.get(name) === asked[name] ? "same" : "other" }, String(read.get(name)));
      chip.append(" ", arrow, element("span", { className: "heard" }, "reads as "), value);
    }
    list.append(chip);
  }
  return element("div", { className: "chips" }, element("p", { className: "quiet" }, turn ? "asked for → reads as" : "asked for"), list);
}

/** One card an attribute. `turn` is one of the `turns` of POST /v1/attributes; `attributes` are the schema's, for their descriptions. */
export function cards(turn, attributes) {
  const described = new Map(attributes.map((a) => [a.name, a.description]));
  const made = Object.entries(turn.attributes).map(([name, found]) => {
    return card(name, found, described.get(name), found.probabilities, `${found.expected.toFixed(1)} expected`);
  });
  if (turn.lang) {
    const likely = Object.entries(turn.lang.probabilities).sort((a, b) => b[1] - a[1]).slice(0, MOST_LANGUAGES);
    made.push(card("language", turn.lang, "", Object.fromEntries(likely), ""));
  }
  return element("div", { className: "cards" }, ...made);
}

function card(name, { value }, description, probabilities, beside) {
  const all = Object.entries(probabilities);
  const least = all.map(([, p]) => p).sort((a, b) => b - a)[MOST - 1] ?? 0;
  const bars = all.filter(([, p]) => p >= least).map(([own, p]) => bar(own, p, own === String(value)));
  const head = element("h3", {}, `${name} `, element("strong", {}, String(value)), " ", element("small", {}, beside));
  const about = description ? [element("p", {}, description)] : [];
  return element("section", { className: "card", "data-attribute": name }, head, ...about, element("ul", {}, ...bars));
}

function bar(value, probability, chosen) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${(100 * probability).toFixed(1)}%`;
  const percent = probability >= 0.01 ? `${(100 * probability).toFixed(0)} %` : "< 1 %";
  return element(
    "li",
    { className: chosen ? "chosen" : "" },
    element("span", { className: "value" }, value),
    element("span", { className: "track" }, fill),
    element("span", { className: "percent" }, percent),
  );
}
