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

document.querySelectorAll("[data-series]").forEach((box) => {
  const apply = () => document.querySelectorAll(`.curve-${box.dataset.series}`).forEach((line) => {
    line.style.display = box.checked ? "" : "none";
  });
  box.addEventListener("change", apply);
  apply();
});
