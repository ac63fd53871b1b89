
"use strict";
(() => {
  const list = document.getElementById("chunks");
  if (!list) return;
  const total = Number(list.dataset.steps);
  const perBlock = Number(list.dataset.block);
  const PAGE = 100;
  const PRINTED = 200;
  const sources = document.querySelectorAll("script.block");
  const blocks = [];
  const form = document.querySelector(".controls");
  const shown = document.querySelector(".shown");
  const pager = document.querySelector(".pager");
  const [back, on] = pager.querySelectorAll("button");
  let chosen = null;  // the indexes that the filter lets through; null for all
  let page = 0;

  const row = (index) => {
    const number = Math.floor(index / perBlock);
    blocks[number] ??= JSON.parse(sources[number].textContent);
    return blocks[number][index % perBlock];
  };
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value) => value.toLocaleString("en");
  const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many ?? one + "s"}`;

  const badges = (facts) => {
    const box = make("span", "badges");
    const add = (text, kind) => box.append(make("span", `badge ${kind ?? ""}`, text), " ");
    const [added, removed] = facts.counts ?? [0, 0];
    if (added) add(`+${count(added, "line")}`, "plus");
    if (removed) add(`−${count(removed, "line")}`, "minus");
    const quotes = (facts.quotes?.length ?? 0) + (facts.more_quotes ?? 0);
    if (quotes) add(count(quotes, "quote"));
    if (facts.kind === "unread") add("unread", "warn");
    if (facts.again) add(`asked again${facts.again > 1 ? ` ${facts.again} times` : ""}`, "warn");
    if (facts.told) add("see inside", "warn");
    return box;
  };

  const lines = (parent, texts, kind) => {
    for (const text of texts ?? []) {
      const item = make("li", kind);
      const [name, sign] = { plus: ["ins", "+ "], minus: ["del", "− "] }[kind] ?? ["span", ""];
      item.append(make(name, "", sign + text.replace(/^\s*[-*•]\s+/, "")));
      parent.append(item);
    }
  };

  const inside = (facts) => {
    const box = make("div", "inside");
    for (const text of facts.told ?? []) box.append(make("p", "told", text));
    for (const reason of facts.retried ?? []) {
      box.append(make("p", "told", `Asked again: ${reason}`));
    }
    if (facts.reply) box.append(make("p", "", `Note: ${facts.reply}.`));
    if (facts.added || facts.removed) {
      box.append(make("h3", "", "What changed in memory"));
      const diff = make("ul", "diff");
      lines(diff, facts.removed, "minus");
      lines(diff, facts.added, "plus");
      box.append(diff);
    } else if (facts.kind === "chunk") {
      const known = "The memory stayed as it was.";
      box.append(make("p", "", facts.counts ? known : "What changed in memory is not recorded."));
    }
    if (facts.memory) {
      box.append(make("h3", "", "Memory after these chunks"));
      const held = make("ul", "diff");
      lines(held, facts.memory, "");
      box.append(held);
    }
    if (facts.plan) {
      box.append(make("h3", "", "Plan for the next chunk"), make("p", "", facts.plan));
    } else if (facts.same_plan) {
      box.append(make("p", "hint", "The plan stayed as it was."));
    }
    if (facts.quotes) {
      box.append(make("h3", "", "Places noted"));
      for (const [where, text] of facts.quotes) {
        box.append(make("p", "where", where));
        if (text) box.append(make("blockquote", "", text));
        else box.append(make("p", "hint", "The text is not in the store any more."));
      }
    }
    if (facts.more_quotes) box.append(make("p", "hint", `${count(facts.more_quotes, "more place")} noted.`));
    const cost = [];
    if (facts.memory_tokens !== undefined) cost.push(`memory ${count(facts.memory_tokens, "token")}`);
    if (facts.evidence !== undefined) cost.push(`${count(facts.evidence, "quote")} held`);
    if (facts.input !== undefined) cost.push(`${number(facts.input)} tokens in, ${number(facts.output ?? 0)} out`);
    if (facts.thoughts) cost.push(`${number(facts.thoughts)} of them thoughts`);
    if (facts.seconds !== undefined) cost.push(`${facts.seconds.toFixed(1)} s`);
    if (cost.length) box.append(make("p", "hint", cost.join(" · ")));
    return box;
  };

  const item = (index) => {
    const facts = row(index);
    const entry = make("li");
    const details = make("details");
    details.id = `chunk-${facts.n}`;
    const summary = make("summary");
    if (facts.kind === "chunk" || facts.kind === "unread") {
      summary.append(make("strong", "", number(facts.n)));
    }
    summary.append(make("span", "at", facts.where), badges(facts));
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(inside(facts));
    });
    entry.append(details);
    return entry;
  };

  const among = () => chosen?.length ?? total;
  const at = (place) => (chosen ? chosen[place] : place);

  const render = (size = PAGE) => {
    const first = page * size;
    const last = Math.min(among(), first + size);
    const items = document.createDocumentFragment();
    for (let place = first; place < last; place++) items.append(item(at(place)));
    list.replaceChildren(items);
    const pages = Math.max(1, Math.ceil(among() / size));
    pager.hidden = pages === 1;
    pager.querySelector(".page").textContent = `Page ${number(page + 1)} of ${number(pages)}`;
    back.disabled = page === 0;
    on.disabled = page >= pages - 1;
    const of = chosen ? `${number(among())} of ${number(total)} entries match` : count(total, "entry", "entries");
    shown.textContent = among() > size ? `${of}; ${number(first + 1)} to ${number(last)} are shown` : of;
  };

  const texts = (facts) => [
    facts.where, facts.plan, facts.reply, ...(facts.added ?? []), ...(facts.removed ?? []),
    ...(facts.told ?? []), ...(facts.retried ?? []), ...(facts.memory ?? []), ...(facts.quotes ?? []).flat(),
  ].filter(Boolean).join("\n").toLowerCase();

  const matches = (facts, kind, wanted) => {
    const [added, removed] = facts.counts ?? [0, 0];
    if (kind === "changed" && !added && !removed) return false;
    if (kind === "quotes" && !facts.quotes && !facts.more_quotes) return false;
    if (kind === "trouble" && !facts.again && !facts.retried && !facts.told && facts.kind !== "unread") return false;
    return !wanted || texts(facts).includes(wanted);
  };

  const filter = () => {
    const kind = form.elements.kind.value;
    const wanted = form.elements.text.value.trim().toLowerCase();
    chosen = null;
    if (kind !== "all" || wanted) {
      chosen = [];
      for (let index = 0; index < total; index++) {
        if (matches(row(index), kind, wanted)) chosen.push(index);
      }
    }
    page = 0;
    render();
  };

  /* The entry that tells of chunk `wanted`: entries ascend, and one may tell of several chunks. */
  const indexOf = (wanted) => {
    let low = 0;
    let high = total - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (row(middle).n <= wanted) low = middle;
      else high = middle - 1;
    }
    return low;
  };

  const goTo = (wanted) => {
    if (!total) return;
    chosen = null;
    form.elements.kind.value = "all";
    form.elements.text.value = "";
    const index = indexOf(wanted);
    page = Math.floor(index / PAGE);
    render();
    const details = list.children[index % PAGE].firstElementChild;
    details.open = true;
    details.scrollIntoView({ block: "start" });
    details.firstElementChild.focus({ preventScroll: true });
  };

  const follow = () => {
    const named = /^#chunk-(\d+)$/.exec(location.hash);
    if (named) goTo(Number(named[1]));
  };

  let typing = 0;
  form.elements.text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(filter, 200);
  });
  form.elements.kind.addEventListener("change", filter);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = form.elements.number.valueAsNumber;
    if (Number.isNaN(wanted)) filter();
    else goTo(wanted);
  });
  const turn = (step) => {
    page += step;
    render();
    shown.scrollIntoView({ block: "start" });
    list.querySelector("summary")?.focus({ preventScroll: true });
  };
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  document.addEventListener("click", (event) => {
    // The same link once more: the hash does not change.
    if (event.target.closest?.('a[href^="#chunk-"]')?.hash === location.hash) follow();
  });
  addEventListener("hashchange", follow);
  let openBefore = null;
  addEventListener("beforeprint", () => {
    openBefore = new Set([...list.querySelectorAll("details[open]")].map((details) => details.id));
    if (among() > PRINTED) return;
    const kept = page;
    page = 0;
    render(PRINTED);
    page = kept;
    for (const details of list.querySelectorAll("details")) {
      details.append(inside(row(indexOf(Number(details.id.slice(6))))));
      details.open = true;
    }
  });
  addEventListener("afterprint", () => {
    if (among() > PRINTED) return;
    render();
    for (const id of openBefore ?? []) {
      const details = document.getElementById(id);
      if (details) details.open = true;
    }
  });

  form.hidden = false;
  render();
  follow();
})();
