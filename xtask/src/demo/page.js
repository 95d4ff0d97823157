// Buttons above the stream: show only some tiles.
const figures = document.querySelectorAll('.stream figure');
const buttons = document.querySelectorAll('.controls button');
buttons.forEach((button) => button.addEventListener('click', () => {
  buttons.forEach((other) => other.setAttribute('aria-pressed', String(other === button)));
  const wanted = button.dataset.show;
  figures.forEach((figure) => figure.classList.toggle('dim', wanted !== 'all' && !figure.classList.contains(wanted)));
}));
// A caption near an edge is moved back into the window.
figures.forEach((figure) => figure.addEventListener('mouseenter', () => {
  const caption = figure.querySelector('figcaption');
  caption.style.marginLeft = '0';
  const box = caption.getBoundingClientRect();
  const right = document.documentElement.clientWidth - 8;
  if (box.left < 8) caption.style.marginLeft = `${8 - box.left}px`;
  if (box.right > right) caption.style.marginLeft = `${right - box.right}px`;
}));
