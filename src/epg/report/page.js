for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input"), steps = input.dataset.steps.split(" ").map(Number);
  const frames = [...slider.parentElement.querySelectorAll(".strip")].map((s) => [...s.querySelectorAll("figure")]);
  const show = () => {
    const step = steps[input.value];
    slider.querySelector("output").textContent = step.toLocaleString("en");
    input.setAttribute("aria-valuetext", "step " + step);
    for (const own of frames) {
      const now = own.findLast((frame) => Number(frame.dataset.step) <= step) || own[0];
      for (const frame of own) frame.classList.toggle("past", frame !== now);
    }
  };
  slider.hidden = steps.length < 2;
  input.addEventListener("input", show);
  show();
}
for (const watched of document.querySelectorAll(".watched")) {
  const button = watched.querySelector("button");
  let timer = setTimeout(() => location.reload(), 1000 * watched.dataset.seconds);
  button.addEventListener("click", () => {
    clearTimeout(timer);
    timer = timer ? 0 : setTimeout(() => location.reload(), 1000 * watched.dataset.seconds);
    button.textContent = timer ? "Pause" : "Follow again";
  });
}
