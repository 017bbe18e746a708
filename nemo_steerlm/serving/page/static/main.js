// What the page starts with: the model's description, and a tab for each thing that it can do.

import { Problem, read, served } from "./api.js";
import { startChat } from "./chat.js";
import { startCompare } from "./compare.js";
import { byId, submitOnEnter, tell } from "./dom.js";
import { cards } from "./reading.js";

function startReading(attributes) {
  const [form, question, text, problem, shown] = ["form", "question", "text", "problem"].map((name) => byId(`read-${name}`)).concat(byId("reading"));
  submitOnEnter(question);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    tell(problem, text.value.trim() ? "" : "Paste a text first.");
    shown.replaceChildren();
    if (problem.textContent) return;
    const asked = question.value.trim() ? [{ role: "user", content: question.value }] : [];
    const turns = [...asked, { role: "assistant", content: text.value }];
    byId("read-send").disabled = true;
    try {
      shown.replaceChildren(cards(await read(turns), attributes));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      tell(problem, error.message);
    } finally {
      byId("read-send").disabled = false;
    }
  });
}

/** Tabs as assistive software expects them: one is in the order of Tab, arrow keys move between them. */
function startTabs(names) {
  const tabs = names.map((name) => byId(`tab-${name}`));
  const select = (chosen) => {
    for (const tab of tabs) {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  tabs.forEach((tab, index) => {
    tab.hidden = false;
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs.at((index + step) % tabs.length);
      select(next);
      next.focus();
    });
  });
  select(tabs[0]);
}

async function start() {
  const model = await served();
  const { kind, attributes } = model.metadata.steerlm;
  const schema = attributes.attributes;
  document.title = model.id;
  byId("name").textContent = model.id;
  byId("about").textContent = `${kind} model · ${schema.length === 1 ? "1 attribute" : `${schema.length} attributes`}`;
  if (!model.scores) {
    startChat(model);
    startCompare(model);
  }
  if (model.reads) startReading(schema);
  byId("no-reader").hidden = model.reads;
  startTabs([...(model.scores ? [] : ["chat", "compare"]), ...(model.reads ? ["read"] : [])]);
  // A keyboard on the screen would cover the sliders.
  if (!model.scores && matchMedia("(pointer: fine)").matches) byId("chat-box").focus();
}

try {
  await start();
} catch (error) {
  tell(byId("page-problem"), error instanceof Problem ? error.message : `The page could not start: ${error.message}`);
}
document.documentElement.dataset.ready = "yes";
