"use strict";
const clips = JSON.parse(document.getElementById("pictures").textContent);

document.querySelectorAll("[data-clip]").forEach((card) => {
  const clip = clips[Number(card.dataset.clip)];
  const picture = (kind) => card.querySelector(`[data-kind="${kind}"]`);
  const stage = card.querySelector(".stage");
  const slider = card.querySelector("input[type=range]");
  const chosen = (name, fallback) => (card.querySelector(`[data-choice="${name}"]:checked`) || { value: fallback }).value;

  const show = () => {
    const shot = clip.frames[Number(chosen("frame", 0))];
    const bits = chosen("bits", Object.keys(shot.quantized)[0]);
    const where = `${clip.name}, frame ${shot.frame}`;
    const set = (kind, source, text) => {
      const image = picture(kind);
      if (image) { image.src = source; image.alt = `${text} of ${where}`; }
    };
    set("float", shot.float, "Alpha by the float network");
    set("quantized", shot.quantized[bits], `Alpha by the ${bits} network`);
    set("error", shot.error[bits], `Heat map of the difference between ${bits} and float alpha`);
    set("source", shot.source, "Source picture");
    set("truth", shot.truth, "True alpha");
    card.querySelector("[data-label=bits]").textContent = bits;
  };
  const move = () => {
    stage.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${Math.round(slider.value)} % float, the rest quantized`);
  };
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  slider.addEventListener("input", move);
  card.querySelectorAll("[data-choice]").forEach((choice) => choice.addEventListener("change", show));
  show();
  move();
});

const boxes = [...document.querySelectorAll("[data-series]")];

// The next number whose quarters are easy to read, as charts.py has it.
const roundUp = (value) => {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].find((step) => value <= step * power * (1 + 1e-9));
};

// Show the chosen lines, and scale each chart to them.
const draw = () => {
  const chosen = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.series));
  document.querySelectorAll("#time svg").forEach((chart) => {
    const lines = [...chart.querySelectorAll("[data-curve]")];
    const shown = lines.filter((line) => chosen.has(line.dataset.curve));
    const bottom = Number(chart.dataset.bottom);
    const top = shown.length ? roundUp(Math.max(...shown.map((line) => Number(line.dataset.highest)))) : Number(chart.dataset.top);
    const scale = Number(chart.dataset.top) / top;
    lines.forEach((line) => {
      line.style.display = shown.includes(line) ? "" : "none";
      line.setAttribute("transform", `translate(0 ${bottom * (1 - scale)}) scale(1 ${scale})`);
    });
    chart.querySelectorAll("[data-tick]").forEach((label, number) => {
      label.textContent = String(Number(((top * number) / 4).toPrecision(4)));
    });
  });
};
boxes.forEach((box) => box.addEventListener("change", draw));
draw();
