// The fields that say what to write like: one slider an attribute, and the language where the schema has some.

import { Slider, choice, newId, presetChoice } from "./controls.js";
import { element } from "./dom.js";
import { attributePresets } from "./presets.js";
import { taughtLabels } from "./support.js";

/** A set of controls for a served model. `start` is the preset to begin with, `suffix` tells two sets apart. */
export class AttributeControls {
  constructor(model, { start = "defaults", suffix = "" } = {}) {
    const { attributes, languages } = model.metadata.steerlm.attributes;
    const presets = attributePresets(attributes, model.default_attributes);
    const first = presets.has(start) ? start : "defaults";
    this.meanings = element("dl");
    this.sliders = {};
    for (const { name, low, high, description } of attributes) {
      const id = newId();
      if (description) this.meanings.append(element("dt", {}, name), element("dd", { id }, description));
      const value = presets.get(first)[name];
      this.sliders[name] = new Slider({ name, low, high, value, about: description, describedBy: description ? id : "" }, suffix);
    }
    const label = (name) => (suffix ? `${name} (${suffix})` : name);
    this.support = taughtLabels(model.metadata.steerlm);
    this.levels = Object.fromEntries(attributes.map(({ name, low, high }) => [name, Array.from({ length: high - low + 1 }, (_, i) => low + i)]));
    this.warning = element("p", { className: "quiet untaught-note", role: "status", hidden: true });
    this.preset = presetChoice(label("Preset"), presets, first, this.sliders);
    this.rows = [this.preset.row, ...Object.values(this.sliders).map((slider) => slider.row), this.warning];
    if (this.support) {
      for (const input of [this.preset.select, ...Object.values(this.sliders).map((slider) => slider.input)]) {
        input.addEventListener("input", () => this.showSupport());
      }
      this.showSupport();
    }
    if (languages.length) {
      const own = model.default_attributes.lang ?? (languages.includes("en") ? "en" : languages[0]);
      this.language = choice(label("language"), [["not said", ""], ...languages], own);
      this.rows.push(this.language.row);
    }
  }

  get chosen() {
    return Object.fromEntries(Object.entries(this.sliders).map(([name, slider]) => [name, slider.value]));
  }

  /** Grey out each level that was never taught beside the others as they stand, and say so of the whole; offer what was. */
  showSupport() {
    const { chosen, support } = this;
    for (const [name, slider] of Object.entries(this.sliders)) {
      slider.mark({ taught: Object.fromEntries(this.levels[name].map((level) => [level, support.count({ ...chosen, [name]: level }) > 0])) });
    }
    const nearest = support.count(chosen) ? null : support.nearest(chosen);
    this.warning.hidden = !nearest;
    if (!nearest) return void this.warning.replaceChildren();
    const other = Object.entries(nearest).filter(([name, level]) => level !== chosen[name]).map(([name, level]) => `${name} ${level}`);
    const use = element("button", { type: "button", className: "small" }, "use it");
    use.addEventListener("click", () => {
      for (const [name, level] of Object.entries(nearest)) this.sliders[name].value = level;
      this.sliders[Object.keys(nearest)[0]].input.dispatchEvent(new Event("input"));
    });
    const how = support.cut ? "rarely or never" : "never";
    this.warning.replaceChildren(`This combination was ${how} taught. The nearest that was has ${other.join(", ")} `, use);
  }

  /** Mark on the sliders how an answer reads. `turn` is one of the `turns` of POST /v1/attributes; null takes the marks away. */
  showRead(turn) {
    for (const [name, slider] of Object.entries(this.sliders)) slider.mark({ read: turn?.attributes[name]?.expected ?? null });
  }

  /** What the API calls `attributes`. */
  get values() {
    const { chosen } = this;
    return this.language?.select.value ? { ...chosen, lang: this.language.select.value } : chosen;
  }

  /** What each attribute means, to be opened by those who ask. Nothing where the schema does not say. */
  get about() {
    if (!this.meanings.childElementCount) return [];
    return [element("details", { className: "meanings" }, element("summary", {}, "What the attributes mean"), this.meanings)];
  }
}
