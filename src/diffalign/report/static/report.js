"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root) => root.querySelector(selector);

  // A stack shows one of its frames.
  const framesOf = (stack) => all("[data-frame]", stack);
  const shownIn = (stack) => framesOf(stack).findIndex((frame) => !frame.hidden);
  const show = (stack, index) => framesOf(stack).forEach((frame, at) => { frame.hidden = at !== index; });
  const turn = (stack, by) => {
    const count = framesOf(stack).length;
    show(stack, (shownIn(stack) + by + count) % count);
  };

  // The gallery: flip one, flip all, hide the outlines.
  const stages = all("button[data-stack]");
  stages.forEach((stage) => {
    stage.addEventListener("click", () => turn(stage, 1));
    stage.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) { event.preventDefault(); turn(stage, by); }
    });
  });
  const flipAll = (section) => {
    const mine = all("button[data-stack]", section);
    const next = mine.length ? shownIn(mine[0]) + 1 : 0;
    mine.forEach((stage) => show(stage, next % framesOf(stage).length));
  };
  const toggleOutlines = () => {
    const hidden = document.body.classList.toggle("no-outlines");
    all("[data-outlines]").forEach((button) => button.setAttribute("aria-pressed", String(!hidden)));
  };
  all("[data-flip-all]").forEach((button) => button.addEventListener("click", () => flipAll(button.closest("section"))));
  all("[data-outlines]").forEach((button) => button.addEventListener("click", toggleOutlines));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea")) return;
    if (event.key === "f") all("section").forEach(flipAll);
    if (event.key === "m") toggleOutlines();
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
