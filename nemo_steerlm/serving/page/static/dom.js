// Elements, made without HTML: what a person or a model wrote is only ever text.

/** An element. Properties are set as they are named; what is an attribute only (aria-*, data-*, role, for) is set as one. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The element of the document that is called `id`. */
export const byId = (id) => document.getElementById(id);

/** Show a sentence, or nothing where it is empty. */
export function tell(place, sentence) {
  place.textContent = sentence;
  place.hidden = !sentence;
}

/** Enter in a text area submits its form; Shift+Enter, and Enter that ends a composed character, do not. The area grows with its text. */
export function submitOnEnter(area) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    area.form.requestSubmit();
  });
  area.addEventListener("input", () => grow(area));
}

/** Put text into a text area, which becomes as high as it needs. */
export function write(area, text) {
  area.value = text;
  grow(area);
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
