"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root) => root.querySelector(selector);

  // A stack shows one of its frames; while a mouse rests on it, the next one.
  const places = new Map();
  let hovered = null;
  const framesOf = (stack) => all("[data-frame]", stack);
  const placeOf = (stack) => places.get(stack) ?? 0;
  const show = (stack, index) => {
    const frames = framesOf(stack);
    places.set(stack, index);
    frames.forEach((frame, at) => { frame.hidden = at !== (index + (stack === hovered)) % frames.length; });
  };
  const turn = (stack, by) => {
    const count = framesOf(stack).length;
    show(stack, (placeOf(stack) + by + count) % count);
  };
  const rest = (stack) => {
    const left = hovered;
    hovered = stack;
    [left, stack].forEach((each) => { if (each) show(each, placeOf(each)); });
  };

  // The images of a gallery: flip one, flip all, side by side, without outlines.
  const sideBySide = (stack) => stack.closest(".side-by-side") !== null;
  all("button[data-stack]").forEach((stage) => {
    stage.addEventListener("click", () => turn(stage, 1));
    stage.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse" && !sideBySide(stage)) rest(stage);
    });
    stage.addEventListener("pointerleave", () => { if (hovered === stage) rest(null); });
    stage.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) { event.preventDefault(); turn(stage, by); }
    });
  });
  const flipAll = (section) => {
    rest(null);
    const mine = all("button[data-stack]", section);
    const next = mine.length ? placeOf(mine[0]) + 1 : 0;
    mine.forEach((stage) => show(stage, next % framesOf(stage).length));
  };
  const toggleOutlines = () => {
    const hidden = document.body.classList.toggle("no-outlines");
    all("[data-outlines]").forEach((button) => button.setAttribute("aria-pressed", String(!hidden)));
  };
  const toggleSides = (button) => {
    rest(null);
    const beside = button.closest("[data-gallery]").classList.toggle("side-by-side");
    button.setAttribute("aria-pressed", String(beside));
  };
  const sideButtons = all("[data-side-by-side]");
  all("[data-flip-all]").forEach((button) => {
    button.addEventListener("click", () => flipAll(button.closest("section")));
  });
  all("[data-outlines]").forEach((button) => button.addEventListener("click", toggleOutlines));
  sideButtons.forEach((button) => button.addEventListener("click", () => toggleSides(button)));

  // Marks of a gallery, kept by the browser under the page's path and the section's heading.
  const keeper = (box) => {
    const key = `diffalign marks ${location.pathname} ${one("h2", box.closest("section"))?.textContent ?? ""}`;
    let kept = true;
    let marks = new Map();
    try {
      const stored = JSON.parse(localStorage.getItem(key) ?? "[]");
      marks = new Map(stored.filter(([, mark]) => mark === "accept" || mark === "reject"));
    } catch { kept = false; }
    const set = (id, mark) => {
      if (mark) marks.set(id, mark); else marks.delete(id);
      try {
        localStorage.setItem(key, JSON.stringify([...marks]));
        kept = true;
      } catch { kept = false; }
    };
    return { get: (id) => marks.get(id) ?? "", set, isKept: () => kept };
  };
  const download = (name, value) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(value, null, 1)}\n`], { type: "application/json" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  // The range of a gallery's gaps: two thumbs over a histogram; a card without a gap is in the full range alone.
  const gapRange = (box, cards, changed) => {
    const field = one("[data-gap]", box);
    if (!field) return { holds: () => true, gapOf: () => null, isFull: () => true, clear: () => {} };
    const [from, to] = all("input", field), choice = one("select", field), svg = one("svg", field);
    const gaps = new Map(cards.map((card) => [card, JSON.parse(card.dataset.gaps)]));
    const gapOf = (card) => gaps.get(card)[choice.value] ?? null;
    let low = 0, high = 0;
    const placeIn = (gap) => (high > low ? Math.min(100, (100 * (gap - low)) / (high - low)) : 0);
    const told = (gap) => `${gap > 0 ? "+" : ""}${Number(gap.toPrecision(3))}`;
    const isFull = () => from.value === "0" && to.value === "100";
    const holds = (card) => {
      const gap = gapOf(card);
      return isFull() || (gap !== null && placeIn(gap) >= Number(from.value) && placeIn(gap) <= Number(to.value));
    };
    const draw = () => {
      const bins = 28, counts = Array(bins).fill(0);
      cards.map(gapOf).filter((gap) => gap !== null)
        .forEach((gap) => { counts[Math.min(bins - 1, Math.floor((placeIn(gap) / 100) * bins))] += 1; });
      svg.replaceChildren(...counts.map((count, bin) => {
        const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        const height = (9.5 * count) / Math.max(...counts, 1), middle = ((bin + 0.5) / bins) * 100;
        Object.entries({ x: bin + 0.1, width: 0.8, y: 10 - height, height })
          .forEach(([name, value]) => bar.setAttribute(name, value));
        bar.classList.toggle("in", middle >= Number(from.value) && middle <= Number(to.value));
        return bar;
      }));
      const ends = [from, to].map((input) => told(low + (Number(input.value) / 100) * (high - low)));
      [from, to].forEach((input, at) => input.setAttribute("aria-valuetext", ends[at]));
      one("[data-ends]", field).textContent = `${ends[0]} to ${ends[1]}`;
    };
    const measure = () => {
      const found = cards.map(gapOf).filter((gap) => gap !== null);
      [low, high] = [Math.min(...found), Math.max(...found)];
      cards.forEach((card) => {
        const fact = one("[data-gap-shown]", card), gap = gapOf(card);
        if (fact) fact.textContent = gap === null ? "no gap" : `gap ${told(gap)}`;
      });
      draw();
    };
    const clear = () => { from.value = 0; to.value = 100; draw(); };
    [from, to].forEach((input, at) => input.addEventListener("input", () => {
      if (Number(from.value) > Number(to.value)) [to, from][at].value = input.value; // one thumb pushes the other
      draw();
      changed();
    }));
    choice.addEventListener("change", () => { measure(); clear(); changed(); });
    measure();
    return { holds, gapOf, isFull, clear };
  };

  // Marks on cards: set by a button or key, told, and exported; what another card of the same id says, all say.
  const marking = (box, cards, changed) => {
    const keep = keeper(box), exporting = one("[data-export]", box);
    const mine = cards.filter((card) => "id" in card.dataset); // not those that could not be read
    const idsOf = (mark) => [...new Set(mine.map((card) => card.dataset.id))].filter((id) => keep.get(id) === mark);
    const tell = () => {
      mine.forEach((card) => {
        card.dataset.mark = keep.get(card.dataset.id);
        all("[data-set]", card).forEach((button) => {
          button.setAttribute("aria-pressed", String(button.dataset.set === card.dataset.mark));
        });
      });
      const accepted = idsOf("accept").length, rejected = idsOf("reject").length, count = accepted + rejected;
      one("[data-marks]", box).textContent = count ? `${accepted} accepted, ${rejected} rejected` : "";
      exporting.textContent = count ? `Export ${count} mark${count > 1 ? "s" : ""}` : "Export marks";
      exporting.disabled = !count;
      one("[data-kept-where]", box).textContent = keep.isKept()
        ? "This browser keeps the marks of this page."
        : "This browser keeps no marks: export them before the page is closed.";
    };
    const mark = (card, value) => {
      if (!mine.includes(card)) return;
      keep.set(card.dataset.id, card.dataset.mark === value ? "" : value); // the same again takes it back
      tell();
      changed();
    };
    all("[data-set]", box).forEach((button) => {
      button.addEventListener("click", () => mark(button.closest(".card"), button.dataset.set));
    });
    exporting.addEventListener("click", () => {
      download("marks.json", { accept: idsOf("accept"), reject: idsOf("reject") });
    });
    tell();
    return mark;
  };

  // A gallery: its filters hide cards and its order moves them.
  const gallery = (box) => {
    const list = one(".cards", box), cards = all(".card", list), facets = all("[data-facet]", box);
    const order = one("[data-order]", box), clearing = one("[data-clear]", box);
    const canFocus = (card) => !card.hidden && one(".stage", card) !== null;
    const focus = (card) => {
      if (!card) return;
      one(".stage", card).focus({ preventScroll: true });
      card.scrollIntoView({ block: "nearest" }); // the whole card, with its buttons
    };
    const near = (card, by) => {
      const now = [...list.children];
      for (let at = now.indexOf(card) + by; at >= 0 && at < now.length; at += by) {
        if (canFocus(now[at])) return now[at];
      }
      return null;
    };
    const filter = () => {
      const within = document.activeElement.closest(".card");
      const wanted = facets
        .map((facet) => [facet.dataset.facet, all("input:checked", facet).map((input) => input.value)])
        .filter(([, values]) => values.length);
      cards.forEach((card) => {
        card.hidden = !range.holds(card) || !wanted.every(([name, values]) => values.includes(card.dataset[name]));
      });
      const shown = cards.filter((card) => !card.hidden).length;
      one("[data-count]", box).textContent = `${shown} of ${cards.length} shown`;
      one("[data-nothing]", box).hidden = shown > 0;
      clearing.hidden = range.isFull() && !wanted.length;
      if (within?.hidden && list.contains(within)) focus(near(within, 1) ?? near(within, -1));
    };
    const sort = () => {
      const sign = Number(order?.value ?? 0), gapOf = range.gapOf;
      const compare = (a, b) => {
        if (!sign) return 0;
        if (gapOf(a) === null || gapOf(b) === null) return (gapOf(a) === null) - (gapOf(b) === null);
        return sign * (gapOf(a) - gapOf(b));
      };
      list.append(...[...cards].sort(compare));
    };
    const go = (by) => {
      const here = document.activeElement.closest(".card");
      focus(here && list.contains(here) ? near(here, by) : [...list.children].find(canFocus));
    };
    const range = gapRange(box, cards, () => { sort(); filter(); });
    const mark = marking(box, cards, filter);
    facets.forEach((facet) => facet.addEventListener("change", filter));
    order?.addEventListener("change", sort);
    clearing.addEventListener("click", () => {
      all("[data-facet] input", box).forEach((input) => { input.checked = false; });
      range.clear();
      filter();
      one(".filters input", box).focus();
    });
    sort(); // a reloaded page keeps the choices
    filter();
    return { box, mark, go };
  };
  const galleries = all("[data-gallery]").filter((box) => one("[data-export]", box)).map(gallery);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, textarea")) return;
    const card = event.target.closest(".card");
    const mine = galleries.find((each) => each.box.contains(event.target)) ?? galleries[0];
    const key = event.key.toLowerCase();
    if (key === "f") all("section").forEach(flipAll);
    if (key === "m") toggleOutlines();
    if (key === "s") sideButtons.forEach(toggleSides);
    if (card && key in { a: 1, r: 1 }) mine?.mark(card, key === "a" ? "accept" : "reject");
    if (key in { j: 1, k: 1 }) mine?.go(key === "j" ? 1 : -1);
  });

  // The slider: every stack below it shows the frame of its position, and the marks on the curves move.
  all("[data-slider]").forEach((box) => {
    const values = box.dataset.values.split("|");
    const input = one("input", box);
    const move = () => {
      const index = Number(input.value);
      all("[data-stack]", box).forEach((stack) => show(stack, index));
      one("output", box).textContent = values[index];
      input.setAttribute("aria-valuetext", values[index]);
      all("[data-positions]", box).forEach((figure) => {
        one(".cursor", figure).style.left = `${figure.dataset.positions.split("|")[index]}%`;
      });
    };
    input.addEventListener("input", move);
    move(); // a reloaded page keeps the input's place
  });

  // The enlarged sample: the arrow keys go through the models of its row.
  const zooms = all(".zoom");
  if (!zooms.length) return;
  const dialog = document.createElement("dialog");
  dialog.innerHTML = `<img alt=""><p aria-live="polite"></p><div class="toolbar"><button type="button">Previous</button>
    <button type="button">Next</button><button type="button">Close</button></div>`;
  document.body.append(dialog);
  let shown = null;
  const enlarge = (zoom) => {
    shown = zoom;
    const from = one("img", zoom), to = one("img", dialog);
    to.src = from.src;
    to.alt = from.alt;
    to.className = from.className;
    to.width = from.width;
    to.height = from.height;
    one("p", dialog).textContent = from.alt;
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const row = all(".zoom", shown.closest("[data-row]"));
    enlarge(row[(row.indexOf(shown) + by + row.length) % row.length]);
  };
  const [previous, next, close] = all("button", dialog);
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  dialog.addEventListener("close", () => shown.focus());
  zooms.forEach((zoom) => zoom.addEventListener("click", () => enlarge(zoom)));
})();
