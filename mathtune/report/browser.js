// The browser of wrong answers: filters, sorts and shows them page by page. Texts become text nodes, never markup.
// A view has an address: #errors?kind=…&q=…&sort=…&SLICE=VALUE. Without this script a plain list is in its place.
"use strict";
(() => {
  const PAGE = 25;
  const data = JSON.parse(document.getElementById("wrong-answers").textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("found");
  const count = document.getElementById("found-count");
  const more = document.getElementById("found-more");
  const orders = {
    sure: (a, b) => (b.sure ?? 0) - (a.sure ?? 0),
    unsure: (a, b) => (a.sure ?? 0) - (b.sure ?? 0),
    row: (a, b) => a.id - b.id,
    long: (a, b) => b.texts.at(-1).length - a.texts.at(-1).length,
  };
  let found = [];

  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // The row's texts in lower case, joined once.
  const haystack = (row) => (row.haystack ??= [row.id, row.told, ...row.texts].join("\n").toLowerCase());

  const matches = (row, wanted) =>
    (!wanted.kind || row.kind === wanted.kind) &&
    data.slices.every((by, i) => !wanted[by] || row.slices[i] === wanted[by]) &&
    wanted.words.every((word) => haystack(row).includes(word));

  // A text with the searched words marked.
  const fill = (parent, text, words) => {
    const low = text.toLowerCase();
    let at = 0;
    while (words.length && low.length === text.length) {
      const hits = words.map((word) => [low.indexOf(word, at), word.length]).filter(([place]) => place >= 0);
      if (!hits.length) break;
      const [place, length] = hits.reduce((first, hit) => (hit[0] < first[0] ? hit : first));
      parent.append(text.slice(at, place), element("mark", "", text.slice(place, place + length)));
      at = place + length;
    }
    parent.append(text.slice(at));
  };

  const body = (row, words) => {
    const texts = element("dl");
    Object.values(data.fields).forEach((title, i) => {
      const text = element("dd");
      fill(text, row.texts[i], words);
      texts.append(element("dt", "", title), text);
    });
    data.slices.forEach((by, i) => {
      if (row.slices[i] !== null) texts.append(element("dt", "", by), element("dd", "", row.slices[i]));
    });
    return texts;
  };

  const entry = (row, words) => {
    const item = element("details", row.p === undefined ? "error solver" : "error");
    const line = element("summary");
    line.append(element("span", "row", `row ${row.id}`), element("span", "tag", row.told));
    if (row.p !== undefined) {
      const bar = element("span", "bar");
      bar.style.setProperty("--share", row.p);
      const probability = element("span", "probability");
      probability.append(bar, `P(True) ${row.p.toFixed(3)}`);
      line.append(probability);
    }
    line.append(element("span", "teaser", row.texts[0].slice(0, 160)));
    item.append(line);
    item.addEventListener("toggle", () => {
      if (item.open && item.children.length === 1) item.append(body(row, words));
    });
    return item;
  };

  const state = () => {
    const fields = Object.fromEntries(new FormData(form));
    return { ...fields, words: fields.q.toLowerCase().split(/\s+/).filter(Boolean) };
  };

  const show = () => {
    const { words } = state();
    const shown = list.children.length;
    list.append(...found.slice(shown, shown + PAGE).map((row) => entry(row, words)));
    const rest = found.length - list.children.length;
    more.hidden = rest <= 0;
    more.textContent = rest > PAGE ? `Show ${PAGE} more of ${rest.toLocaleString("en")}` : `Show the other ${rest}`;
  };

  const update = () => {
    const wanted = state();
    found = data.rows.filter((row) => matches(row, wanted)).sort(orders[wanted.sort]);
    list.replaceChildren();
    count.textContent = `${found.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")}`;
    show();
  };

  const address = () => {
    const set = [...new FormData(form)].filter(([name, value]) => value && value !== form.elements.namedItem(name).dataset?.plain);
    history.replaceState(null, "", set.length ? `#errors?${new URLSearchParams(set)}` : "#errors");
  };

  // Sets the filters from the address, where it speaks of them.
  const follow = () => {
    const [place, query] = location.hash.slice(1).split(/\?(.*)/s);
    if (place !== "errors" || query === undefined) return;
    form.reset();
    for (const [name, value] of new URLSearchParams(query)) {
      const field = form.elements.namedItem(name);
      if (!field) continue;
      field.value = value;
      if (field.value !== value) field.value = field.dataset?.plain ?? "";
    }
    update();
    document.getElementById("errors").scrollIntoView();
  };

  form.addEventListener("input", () => { update(); address(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { update(); address(); }));
  more.addEventListener("click", () => {
    const next = list.children.length;
    show();
    list.children[next]?.firstElementChild.focus();
  });
  addEventListener("hashchange", follow);
  document.getElementById("listed").remove();
  document.getElementById("browser").hidden = false;
  update();
  follow();
})();
