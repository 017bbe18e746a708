// The fields that say how tokens are drawn, and how many.

import { Slider, newId, presetChoice } from "./controls.js";
import { element } from "./dom.js";
import { SAMPLING } from "./presets.js";

// To begin with: an answer that does not end would fill the context otherwise.
const MOST_TOKENS = 256;

/** The fields, for a served model. */
export class SamplingControls {
  constructor(model) {
    const [[name, start]] = SAMPLING;
    const drawn = [
      { key: "temperature", name: "temperature", low: 0, high: 2, step: 0.05, about: "0: always the most likely token" },
      { key: "top_p", name: "top-p", low: 0.05, high: 1, step: 0.05, about: "of the most likely tokens, this much" },
      { key: "top_k", name: "top-k", low: 0, high: 200, about: "so many of the most likely tokens; 0: all" },
      { key: "repetition_penalty", name: "repetition penalty", low: 1, high: 2, step: 0.05, about: "1: none" },
    ];
    this.sliders = Object.fromEntries(drawn.map((one) => [one.key, new Slider({ ...one, value: start[one.key] })]));
    const most = model.max_model_len;
    this.limit = new Slider({ name: "length", low: 1, high: most, value: Math.min(MOST_TOKENS, most >> 1), about: "tokens at most" });
    this.preset = presetChoice("Sampling", SAMPLING, name, this.sliders);
    const id = newId();
    this.seed = element("input", { type: "number", id, min: 0, max: 2 ** 31 - 1, step: 1, inputMode: "numeric", placeholder: "another each time" });
    const seed = element("div", { className: "choice" }, element("label", { for: id, title: "the same seed gives the same text" }, "seed"), this.seed);
    const detail = [...Object.values(this.sliders), this.limit].map((slider) => slider.row);
    this.rows = [this.preset.row, element("details", {}, element("summary", {}, "Sampling in detail"), ...detail, seed)];
  }

  /** What the chat endpoint's body says of it. */
  get body() {
    const body = Object.fromEntries(Object.entries(this.sliders).map(([key, slider]) => [key, slider.value]));
    const seed = this.seed.valueAsNumber;
    return { ...body, max_tokens: this.limit.value, ...(Number.isSafeInteger(seed) ? { seed } : {}) };
  }
}
