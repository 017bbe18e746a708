// Fields that a preset moves: rows of a name, a slider and its value.

import { element } from "./dom.js";
import { CUSTOM } from "./presets.js";

let made = 0;
/** A name for an element that no other has. */
export const newId = () => `field-${++made}`;

/** A row with a slider. `suffix` tells two rows of one name apart where only their names are heard. */
export class Slider {
  constructor({ name, low, high, step = 1, value, about = "", describedBy = "" }, suffix = "") {
    this.low = low;
    this.high = high;
    this.taught = null;
    this.read = null;
    const id = newId();
    this.input = element("input", { type: "range", id, min: low, max: high, step, value, title: about });
    if (suffix) this.input.setAttribute("aria-label", `${name} (${suffix})`);
    if (describedBy) this.input.setAttribute("aria-describedby", describedBy);
    this.output = element("output", { for: id });
    this.row = element("div", { className: "slider" }, element("label", { for: id, title: about }, name), this.input, this.output);
    this.input.addEventListener("input", () => this.show());
    this.show();
  }

  get value() {
    return Number(this.input.value);
  }

  set value(value) {
    this.input.value = value;
    this.show();
  }

  show() {
    this.output.textContent = this.input.value;
    this.input.style.setProperty("--filled", `${100 * this.place(this.value)}%`);
  }

  place(level) {
    return (level - this.low) / (this.high - this.low);
  }

  /** Draw under the track a dot for each level, grey where it was not `taught`, and a line where the last answer was `read`. */
  mark({ taught = this.taught, read = this.read }) {
    this.taught = taught;
    this.read = read;
    const at = (level) => `calc(var(--thumb) / 2 + (100% - var(--thumb)) * ${this.place(level)})`;
    const dots = Object.entries(taught ?? {}).map(([level, known]) => {
      return `radial-gradient(circle at ${at(level)} 88%, var(${known ? "--text" : "--line"}) .13rem, transparent .15rem)`;
    });
    const line = (edge) => `calc(${at(read)} ${edge} .09rem)`;
    const lines = read === null ? [] : [`linear-gradient(to right, transparent ${line("-")}, var(--main) ${line("-")} ${line("+")}, transparent ${line("+")})`];
    this.input.style.backgroundImage = [...lines, ...dots].join(", ");
    this.row.classList.toggle("untaught", Boolean(taught) && taught[this.value] === false);
    this.input.dataset.read = read === null ? "" : read.toFixed(1);
  }
}

/** A field to choose from, under its label. `options` are strings, or pairs of what is shown and its value. */
export function choice(label, options, value) {
  const id = newId();
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const select = element("select", { id }, ...pairs.map(([shown, own]) => element("option", { value: own }, shown)));
  select.value = value;
  return { select, row: element("div", { className: "choice" }, element("label", { for: id }, label), select) };
}

/** A field of presets over sliders: a chosen one moves them, and a moved one makes it `CUSTOM`. `sliders` by the name in a preset. */
export function presetChoice(label, presets, start, sliders) {
  const { select, row } = choice(label, [...presets.keys(), CUSTOM], start);
  select.addEventListener("input", () => {
    const values = presets.get(select.value) ?? {};
    for (const [name, value] of Object.entries(values)) sliders[name].value = value;
  });
  for (const slider of Object.values(sliders)) {
    slider.input.addEventListener("input", () => {
      select.value = CUSTOM;
    });
  }
  return { select, row };
}
